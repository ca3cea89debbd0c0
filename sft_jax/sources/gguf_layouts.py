"""Tensors that a GGUF file holds in another order or form than Hugging Face, as Hugging Face has them.

A layout takes what is stored, the config, and what an error names the tensor by. Of a part of the rows no more is read
than it needs.
"""

import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32

from sft_jax.sources.tensors import SourceError, TensorEntry

Layout = Callable[[TensorEntry, dict, str], TensorEntry]
Span = tuple[TensorEntry, int, int]  # a tensor, the first of some rows of it, and the one behind the last


def minus_one(entry: TensorEntry, config: dict, name: str) -> TensorEntry:
    """A norm that is stored as 1 + w."""
    return TensorEntry(entry.shape, entry.dtype, lambda start, stop: entry.read(start, stop) - np.float32(1.0))


def as_row(entry: TensorEntry, config: dict, name: str) -> TensorEntry:
    """A matrix of one row, [in] or [1, in] -> [1, in]."""
    if len(entry.shape) != 1:
        return entry
    return TensorEntry((1, *entry.shape), entry.dtype, lambda start, stop: entry.load()[None][start:stop])


def of_heads(field: str) -> Layout:
    """A query or key projection of as many heads as a field of the config says, whose rows llama.cpp has interleaved
    for its own form of the rotary embedding (`permute` in its conversion/llama.py is the forward direction)."""

    def layout(entry: TensorEntry, config: dict, name: str) -> TensorEntry:
        heads = config[field]
        if entry.shape[0] != heads * config["head_dim"]:
            raise SourceError(f"{name} has {entry.shape[0]} rows; expected {heads} heads x {config['head_dim']}.")
        return TensorEntry(entry.shape, entry.dtype, functools.partial(_read_unpermuted, entry, heads))

    return layout


INTERLEAVED = {"attn_q": of_heads("num_attention_heads"), "attn_k": of_heads("num_key_value_heads")}


def undo_rope_permutation(weight: Float32[np.ndarray, "..."], num_heads: int) -> Float32[np.ndarray, "..."]:
    """Rows of a query or key projection from llama.cpp's order to Hugging Face's; works for its bias too.

    In each head llama.cpp puts rows i and i + head_dim/2 next to each other: with one head of 4 rows, its
    [0, 2, 1, 3] becomes [0, 1, 2, 3].
    """
    pairs = weight.reshape(num_heads, weight.shape[0] // num_heads // 2, 2, *weight.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)


def _read_unpermuted(entry: TensorEntry, num_heads: int, start: int, stop: int) -> np.ndarray:
    """Of the heads that the rows are of, all rows are read."""
    width = entry.rows // num_heads
    first, after = start // width, -(-stop // width)
    heads = undo_rope_permutation(entry.read(first * width, after * width), after - first)
    return heads[start - first * width : stop - first * width]


def gathered(spans: list[Span]) -> TensorEntry:
    """A tensor whose rows are those of the spans, one span behind the other."""
    entry = spans[0][0]
    rows = sum(after - first for _, first, after in spans)
    return TensorEntry((rows, *entry.shape[1:]), entry.dtype, functools.partial(_read_spans, spans))


def _read_spans(spans: list[Span], start: int, stop: int) -> np.ndarray:
    parts, before = [], 0
    for entry, first, after in spans:
        low, high = max(start - before, 0), min(stop - before, after - first)
        if low < high:
            parts.append(entry.read(first + low, first + high))
        before += after - first
    return np.concatenate(parts)
