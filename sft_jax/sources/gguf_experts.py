"""Experts in a GGUF file: three tensors of all experts of a layer, as a config of Hugging Face has them in two.

llama.cpp stores gate, up [experts, ffn, model] and down [experts, model, ffn]. transformers has [experts, in, out]: of
gpt-oss gate and up are one tensor, in whose outputs the two take turns.
"""

import functools
import re

import numpy as np

from sft_jax.sources.gguf_file import GgufFile, GgufTensor, tensor_entry
from sft_jax.sources.tensors import SourceError, TensorEntry

_NAME = re.compile(r"blk\.(?P<layer>\d+)\.ffn_(?P<part>gate|up|down)_exps\.(?P<kind>weight|bias)")
_SUFFIX = {"weight": "", "bias": "_bias"}


def interleaved(file: GgufFile) -> dict[str, TensorEntry]:
    """The experts of all layers as gpt-oss has them, by Hugging Face name.

    Raises:
        SourceError: one of gate and up is missing, or both have not the same shape.
    """
    found: dict[tuple[str, str], dict[str, GgufTensor]] = {}
    for name, tensor in file.tensors.items():
        if match := _NAME.fullmatch(name):
            found.setdefault((match["layer"], match["kind"]), {})[match["part"]] = tensor
    made = {}
    for (layer, kind), parts in found.items():
        stem, suffix = f"model.layers.{layer}.mlp.experts", _SUFFIX[kind]
        if "down" in parts:
            made[f"{stem}.down_proj{suffix}"] = _turned(tensor_entry(file.path, parts["down"]))
        if {"gate", "up"} & parts.keys():
            made[f"{stem}.gate_up_proj{suffix}"] = _in_turn(file, layer, kind, parts)
    return made


def is_of_experts(name: str) -> bool:
    """Whether a tensor of a GGUF file is of experts."""
    return _NAME.fullmatch(name) is not None


def _turned(entry: TensorEntry) -> TensorEntry:
    """[experts, out, in] -> [experts, in, out]; a bias [experts, out] stays."""
    if len(entry.shape) < 3:
        return entry
    experts, outputs, inputs = entry.shape
    read = lambda start, stop: np.ascontiguousarray(entry.read(start, stop).swapaxes(1, 2))
    return TensorEntry((experts, inputs, outputs), entry.dtype, read)


def _in_turn(file: GgufFile, layer: str, kind: str, parts: dict[str, GgufTensor]) -> TensorEntry:
    names = {part: f"blk.{layer}.ffn_{part}_exps.{kind}" for part in ("gate", "up")}
    if missing := [name for part, name in names.items() if part not in parts]:
        raise SourceError(f"{file.path}: has no tensor {missing[0]}: it is not a whole model.")
    gate, up = (_turned(tensor_entry(file.path, parts[part])) for part in names)
    if gate.shape != up.shape:
        raise SourceError(
            f"{file.path}: {names['gate']} has shape {parts['gate'].shape} and {names['up']} {parts['up'].shape}; "
            "expected the same."
        )
    shape = (*gate.shape[:-1], 2 * gate.shape[-1])
    return TensorEntry(shape, gate.dtype, functools.partial(_read_in_turn, gate, up))


def _read_in_turn(gate: TensorEntry, up: TensorEntry, start: int, stop: int) -> np.ndarray:
    both = np.stack([gate.read(start, stop), up.read(start, stop)], axis=-1)
    return both.reshape(*both.shape[:-2], -1)
