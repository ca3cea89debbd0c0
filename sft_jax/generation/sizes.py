"""Shapes and places of what the compiled parts of generation take: few sizes, split over the mesh in force."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Shaped

from sft_jax.models.partitioning import BATCH_AXES

SMALLEST = 128
ROW_TOKENS = 1024  # of prompts that are read together, unless a single one is longer
SMALLEST_PROMPT = 16  # places of a slot for its prompt


def rounded_size(size: int, smallest: int = SMALLEST) -> int:
    """The next power of two, or one and a half times one, that is at least `size`: few shapes, few compilations."""
    above = max(smallest, 1 << (size - 1).bit_length())
    return above * 3 // 4 if above > smallest and size <= above * 3 // 4 else above


def row_size(tokens: int) -> int:
    """Places of a row for so many tokens of prompts: what is padding is computed all the same."""
    return -(-tokens // SMALLEST) * SMALLEST if tokens <= ROW_TOKENS else rounded_size(tokens)


def shards() -> int:
    """Into how many parts the mesh in force (`jax.set_mesh`) splits a batch."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in BATCH_AXES)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The shapes of a sampler that is compiled for nothing else, whatever it is asked.

    Attributes:
        prompt: tokens of a prompt, at most.
        row: tokens of prompts that are read together, of each part into which a mesh splits a batch; at least `prompt`.
        new: tokens of an answer, at most.
    """

    prompt: int
    row: int
    new: int

    @classmethod
    def for_prompts(cls, lengths: Sequence[int], at_once: int, new: int) -> "Sizes":
        """Those for prompts of these lengths, `at_once` of which are answered together."""
        row = max(max(lengths), min(ROW_TOKENS, int(np.median(lengths)) * -(-at_once // shards())))
        return cls(rounded_size(max(lengths), SMALLEST_PROMPT), row_size(row), rounded_size(new, 16))


def put(array: Shaped[np.ndarray, "B ..."]) -> Shaped[Array, "B ..."]:
    """A batch on its devices. Every process has the whole of it; each device takes its own part."""
    if jax.sharding.get_abstract_mesh().empty:
        return jnp.asarray(array)
    sharding = NamedSharding(jax.sharding.get_mesh(), P(BATCH_AXES))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def on_host(arrays: tuple[jax.Array, ...]) -> tuple[np.ndarray, ...]:
    """The whole arrays, on every process."""
    if all(array.is_fully_addressable for array in arrays):
        return jax.device_get(arrays)
    from jax.experimental import multihost_utils

    return tuple(np.asarray(multihost_utils.process_allgather(array, tiled=True)) for array in arrays)
