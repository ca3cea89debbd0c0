"""Experts that a file holds in one tensor: `experts.gate_up_proj` [experts, 2 ffn, in] and `experts.down_proj`
[experts, out, ffn], as Qwen 3.5 is published. They are read as transformers 5 writes them, one tensor a projection of
each expert.
"""

import functools
import re
from collections.abc import Mapping

import numpy as np

from sft_jax.sources.tensors import TensorEntry

MODEL_TYPES = ("qwen3_5_moe_text",)
_STACKED = re.compile(r"(?P<stem>.+\.mlp\.experts)\.(?P<name>gate_up_proj|down_proj)")
_PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def one_by_one(tensors: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """The tensors with those of single experts in place of those of all, which are read when they are."""

    @functools.lru_cache(maxsize=2)  # gate and up of an expert are read in turn with down, and each in several parts
    def expert(name: str, number: int) -> np.ndarray:
        return tensors[name].read(number, number + 1)[0]

    def part(name: str, number: int, first: int, behind: int) -> TensorEntry:
        entry = tensors[name]
        read = lambda start, stop: expert(name, number)[first + start : first + stop].copy()
        return TensorEntry((behind - first, entry.shape[2]), entry.dtype, read)

    apart = {}
    for name, entry in tensors.items():
        apart |= {single: part(name, *place) for single, place in places(name, entry.shape).items()} or {name: entry}
    return apart


def places(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, int, int]]:
    """The tensors of single experts in one of all: (expert, first row, row behind the last); none in any other."""
    found = _STACKED.fullmatch(name)
    if found is None or len(shape) != 3:
        return {}
    parts = _PARTS[found["name"]]
    rows = shape[1] // len(parts)
    return {
        f"{found['stem']}.{number}.{part}.weight": (number, place * rows, (place + 1) * rows)
        for number in range(shape[0])
        for place, part in enumerate(parts)
    }
