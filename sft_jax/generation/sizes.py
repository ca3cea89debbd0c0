"""Shapes and places of what the compiled parts of generation take: few sizes, split over the mesh in force."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Shaped

from sft_jax.models.partitioning import BATCH_AXES

SMALLEST = 128


def rounded_size(size: int, smallest: int = SMALLEST) -> int:
    """The next power of two, or one and a half times one, that is at least `size`: few shapes, few compilations."""
    above = max(smallest, 1 << (size - 1).bit_length())
    return above * 3 // 4 if above > smallest and size <= above * 3 // 4 else above


def shards() -> int:
    """Into how many parts the mesh in force (`jax.set_mesh`) splits a batch."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in BATCH_AXES)


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
