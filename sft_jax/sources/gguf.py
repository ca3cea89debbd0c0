"""Reads GGUF files, as llama.cpp writes them, as a config, tensor names and layouts of Hugging Face.

llama.cpp's conventions are undone here, as `gguf_architectures` lists them for each architecture. For the Llamas it
interleaves the rows of the query and key projections for its own form of the rotary embedding (`permute` in its
conversion/llama.py is the forward direction); the norms of the Gemmas it stores as 1 + w.
"""

import functools
import re

import numpy as np
from etils import epath
from jaxtyping import Float32

from sft_jax.sources.gguf_architectures import ARCHITECTURES, Architecture, shared_config
from sft_jax.sources.gguf_experts import is_of_experts
from sft_jax.sources.gguf_file import GgufFile, read_gguf, tensor_entry
from sft_jax.sources.gguf_metadata import ModelMetadata
from sft_jax.sources.tensors import SourceError, TensorEntry

_TENSOR_NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<part>[a-z_]+)\.(?P<kind>weight|bias)")
_INSTEAD = "Use the model's Hugging Face directory (safetensors) instead."


def read_checkpoint(path: epath.Path) -> tuple[dict, dict[str, TensorEntry], list[epath.Path]]:
    """(config, float32 tensors by Hugging Face name, [path]) of a GGUF file.

    Raises:
      SourceError: not a GGUF file, damaged, of another architecture, or with tensors or metadata that are not known.
    """
    file = read_gguf(path)
    metadata = ModelMetadata(file)
    if metadata.architecture not in ARCHITECTURES:
        raise SourceError(
            f"{path}: is of the architecture {metadata.architecture!r}; GGUF files of {', '.join(ARCHITECTURES)} are "
            f"supported. {_INSTEAD}"
        )
    architecture = ARCHITECTURES[metadata.architecture]
    _check_supported(metadata, architecture)
    config = architecture.config(metadata, shared_config(metadata, architecture.partial_rope))
    return config, _tensors(file, architecture, config), [path]


def undo_rope_permutation(weight: Float32[np.ndarray, "..."], num_heads: int) -> Float32[np.ndarray, "..."]:
    """Rows of a query or key projection from llama.cpp's order to Hugging Face's; works for its bias too.

    In each head llama.cpp puts rows i and i + head_dim/2 next to each other: with one head of 4 rows, its
    [0, 2, 1, 3] becomes [0, 1, 2, 3].
    """
    pairs = weight.reshape(num_heads, weight.shape[0] // num_heads // 2, 2, *weight.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)


def _check_supported(metadata: ModelMetadata, architecture: Architecture) -> None:
    file = metadata.file
    if metadata.get("expert_count", 0) and architecture.experts is None:
        raise SourceError(
            f"{file.path}: is a mixture of experts, which is not supported for GGUF files of this architecture. "
            + _INSTEAD
        )
    if file.metadata.get("split.count", 1) != 1:
        raise SourceError(
            f"{file.path}: is one part of a split GGUF file. Join the parts with `llama-gguf-split --merge`."
        )
    unknown = sorted(set(metadata.keys()) - architecture.keys)
    if unknown:
        raise SourceError(
            f"{file.path}: has metadata of features that are not supported: "
            + ", ".join(f"{metadata.name(key)} = {str(metadata.get(key))[:60]}" for key in unknown)
            + f". {_INSTEAD}"
        )


def _tensors(file: GgufFile, architecture: Architecture, config: dict) -> dict[str, TensorEntry]:
    tensors, unknown = {} if architecture.experts is None else architecture.experts(file), []
    for name, tensor in file.tensors.items():
        if architecture.experts is not None and is_of_experts(name):
            continue
        match = _TENSOR_NAME.fullmatch(name)
        part, layer, kind = match.group("part", "layer", "kind") if match else (name, None, "")
        if layer is None and part in architecture.read_by_config:
            continue
        known = architecture.outer if layer is None else architecture.layer
        if part not in known:
            unknown.append(name)
            continue
        entry = tensor_entry(file.path, tensor)
        if architecture.interleaved_rope and part in ("attn_q", "attn_k"):
            entry = _unpermuted(file, name, entry, config, part)
        if architecture.one_plus_norms and part.endswith("norm"):
            entry = TensorEntry(entry.shape, entry.dtype, functools.partial(_read_minus_one, entry))
        prefix = "" if layer is None else f"model.layers.{layer}."
        suffix = "" if part in architecture.bare else f".{kind}"
        tensors[f"{prefix}{known[part]}{suffix}"] = entry
    if unknown:
        raise SourceError(
            f"{file.path}: {len(unknown)} tensors are not part of a {config['model_type']} model: "
            f"{', '.join(sorted(unknown)[:5])}. {_INSTEAD}"
        )
    return tensors


def _unpermuted(file: GgufFile, name: str, entry: TensorEntry, config: dict, part: str) -> TensorEntry:
    heads = config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]
    if entry.shape[0] != heads * config["head_dim"]:
        raise SourceError(
            f"{file.path}: {name} has {entry.shape[0]} rows; expected {heads} heads x {config['head_dim']}."
        )
    return TensorEntry(entry.shape, entry.dtype, functools.partial(_read_unpermuted, entry, heads))


def _read_unpermuted(entry: TensorEntry, num_heads: int, start: int, stop: int) -> np.ndarray:
    """Of the heads that the rows are of, all rows are read."""
    width = entry.rows // num_heads
    first, after = start // width, -(-stop // width)
    heads = undo_rope_permutation(entry.read(first * width, after * width), after - first)
    return heads[start - first * width : stop - first * width]


def _read_minus_one(entry: TensorEntry, start: int, stop: int) -> np.ndarray:
    return entry.read(start, stop) - np.float32(1.0)
