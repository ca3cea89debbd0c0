"""Experts in a GGUF file: three tensors of all experts of a layer, gate, up [experts, ffn, model] and down [experts,
model, ffn], or gate and up in one behind each other; as the model's own files have them.
"""

import dataclasses
import functools
import re

import numpy as np

from sft_jax.sources.gguf_file import GgufFile, GgufTensor, tensor_entry
from sft_jax.sources.tensors import SourceError, TensorEntry

_NAME = re.compile(r"blk\.(?P<layer>\d+)\.ffn_(?P<part>gate_up|gate|up|down)_exps\.(?P<kind>weight|bias)")
_SUFFIX = {"weight": "", "bias": "_bias"}
_Parts = dict[str, GgufTensor]


def interleaved(file: GgufFile, config: dict) -> tuple[dict[str, TensorEntry], set[str]]:
    """As gpt-oss has them: [experts, in, out], gate and up one tensor in whose outputs the two take turns.

    Returns:
        The tensors by Hugging Face name, and the names of those in the file that they are made of.

    Raises:
        SourceError: one of gate and up is missing, or both have not the same shape.
    """
    made, used = {}, set()
    for (layer, kind), parts in _by_layer(file).items():
        stem, suffix = f"model.layers.{layer}.mlp.experts", _SUFFIX[kind]
        if "down" in parts:
            made[f"{stem}.down_proj{suffix}"] = _turned(tensor_entry(file.path, parts["down"]))
        if {"gate", "up"} & parts.keys():
            gate, up = map(_turned, _gate_and_up(file, layer, kind, parts))
            shape = (*gate.shape[:-1], 2 * gate.shape[-1])
            read = functools.partial(_read_in_turn, gate, up)
            made[f"{stem}.gate_up_proj{suffix}"] = TensorEntry(shape, gate.dtype, read)
        used |= {tensor.name for part, tensor in parts.items() if part != "gate_up"}
    return made, used


def packed(file: GgufFile, config: dict) -> tuple[dict[str, TensorEntry], set[str]]:
    """As Gemma 4 has them: [experts, out, in], gate and up one tensor, of each expert up behind gate.

    Returns:
        As `interleaved`.

    Raises:
        SourceError: as `interleaved`.
    """
    made, used = {}, set()
    for (layer, kind), parts in _by_layer(file).items():
        stem = f"model.layers.{layer}.experts"
        if kind == "bias":
            continue
        for part in {"gate_up", "down"} & parts.keys():
            made[f"{stem}.{part}_proj"] = tensor_entry(file.path, parts[part])
        if {"gate", "up"} & parts.keys():
            gate, up = _gate_and_up(file, layer, kind, parts)
            shape = (gate.shape[0], 2 * gate.shape[1], *gate.shape[2:])
            read = functools.partial(_read_behind, gate, up)
            made[f"{stem}.gate_up_proj"] = TensorEntry(shape, gate.dtype, read)
        used |= {tensor.name for tensor in parts.values()}
    return made, used


def one_by_one(file: GgufFile, config: dict) -> tuple[dict[str, TensorEntry], set[str]]:
    """As most models have them: for each projection of each expert a tensor [out, in].

    Returns:
        As `interleaved`.

    Raises:
        SourceError: a tensor of experts is not [experts, out, in].
    """
    made, used = {}, set()
    for (layer, kind), parts in _by_layer(file).items():
        if kind == "bias":
            continue
        for part, tensor in parts.items():
            made |= _singles(file, f"model.layers.{layer}.mlp.experts", part, tensor)
            used.add(tensor.name)
    return made, used


def _by_layer(file: GgufFile) -> dict[tuple[str, str], _Parts]:
    """(layer, weight or bias) -> gate, up, down."""
    found: dict[tuple[str, str], _Parts] = {}
    for name, tensor in file.tensors.items():
        if match := _NAME.fullmatch(name):
            found.setdefault((match["layer"], match["kind"]), {})[match["part"]] = tensor
    return found


def _gate_and_up(file: GgufFile, layer: str, kind: str, parts: _Parts) -> tuple[TensorEntry, TensorEntry]:
    names = {part: f"blk.{layer}.ffn_{part}_exps.{kind}" for part in ("gate", "up")}
    if missing := [name for part, name in names.items() if part not in parts]:
        raise SourceError(f"{file.path}: has no tensor {missing[0]}: it is not a whole model.")
    gate, up = parts["gate"], parts["up"]
    if gate.shape != up.shape:
        raise SourceError(
            f"{file.path}: {names['gate']} has shape {gate.shape} and {names['up']} {up.shape}; expected the same."
        )
    return tensor_entry(file.path, gate), tensor_entry(file.path, up)


def _singles(file: GgufFile, stem: str, part: str, tensor: GgufTensor) -> dict[str, TensorEntry]:
    if len(tensor.shape) != 3:
        raise SourceError(f"{file.path}: {tensor.name} has shape {tensor.shape}; expected (experts, outputs, inputs).")
    experts, rows, inputs = tensor.shape
    names = part.split("_")
    height = rows // len(names)
    all_rows = tensor_entry(file.path, dataclasses.replace(tensor, shape=(experts * rows, inputs)))
    return {
        f"{stem}.{number}.{name}_proj.weight": TensorEntry(
            (height, inputs),
            all_rows.dtype,
            functools.partial(_read_from, all_rows, number * rows + place * height),
        )
        for number in range(experts)
        for place, name in enumerate(names)
    }


def _read_from(entry: TensorEntry, first: int, start: int, stop: int) -> np.ndarray:
    return entry.read(first + start, first + stop)


def _turned(entry: TensorEntry) -> TensorEntry:
    """[experts, out, in] -> [experts, in, out]; a bias [experts, out] stays."""
    if len(entry.shape) < 3:
        return entry
    experts, outputs, inputs = entry.shape
    read = lambda start, stop: np.ascontiguousarray(entry.read(start, stop).swapaxes(1, 2))
    return TensorEntry((experts, inputs, outputs), entry.dtype, read)


def _read_in_turn(gate: TensorEntry, up: TensorEntry, start: int, stop: int) -> np.ndarray:
    both = np.stack([gate.read(start, stop), up.read(start, stop)], axis=-1)
    return both.reshape(*both.shape[:-2], -1)


def _read_behind(gate: TensorEntry, up: TensorEntry, start: int, stop: int) -> np.ndarray:
    return np.concatenate([gate.read(start, stop), up.read(start, stop)], axis=1)
