"""Looks rows of an embedding up where the embedding, and the tokens, are split over a mesh.

A device holds all rows of a part of the columns. So it looks up the tokens of all devices in its own columns, and they
exchange parts: each sends, and gets, no more than its own tokens' rows, however many devices there are. Where the parts
would be thinner than a lane of the hardware, the embedding is gathered instead. Neither adds up rows of other devices.

Dimensions as in `decoder`.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from sft_jax.models.matmul import Weight
from sft_jax.models.partitioning import (
    BATCH_AXES,
    PARAM_AXES,
    fit_spec,
    gather_own,
    gathered,
    several,
    sum_over,
    sum_to_own,
)

LANES = 128  # columns below which rows are read in pieces smaller than what accelerators read at a time
_SHARED_BATCH_AXES = ("fsdp", "expert")  # axes that split both sequences and parameters


def look_up(
    table: Float[Array, "V D"], tokens: Int[Array, "B S"], dtype: str, weight: Weight | None = None
) -> Float[Array, "B S D"]:
    """The rows of these tokens, rounded to `dtype`. Their gradient is added up in float32 on each device.

    Args:
        table: any float dtype.
        tokens: numbers of rows.
        dtype: of the result.
        weight: how the table lies on the mesh in force. By default that is left to the compiler.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if weight is None or mesh.empty or mesh.size == 1:
        return jnp.take(table, tokens, axis=0).astype(dtype)
    if None in fit_spec(P(BATCH_AXES, "context"), tokens.shape, dict(mesh.shape)):  # not split evenly
        return jnp.take(table, tokens, axis=0).astype(dtype)
    return _over_mesh(table, tokens, dtype, weight)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _over_mesh(table, tokens, dtype, weight):
    return _forward(table, tokens, dtype, weight)[0]


def _forward(table, tokens, dtype, weight):
    stored, placed = weight.stored, P(BATCH_AXES, "context")
    by_columns = _by_columns(stored, table.shape)

    def on_device(table, tokens):
        if not by_columns:
            return jnp.take(gather_own(table.astype(dtype), stored), tokens, axis=0)
        rows = jnp.take(table, _of_all(tokens), axis=0).astype(dtype)
        return _exchanged(_exchanged(rows, ("context",), 1, 2), _SHARED_BATCH_AXES, 0, 2)

    rows = jax.shard_map(
        on_device, in_specs=(stored, placed), out_specs=P(*placed, gathered(stored)[1]), check_vma=False
    )(table, tokens)
    return rows, (tokens, jnp.zeros((0,), table.dtype), table.shape[0])


def _backward(dtype, weight, residuals, cotangent):
    del dtype
    (tokens, like_table, vocabulary), stored, placed = residuals, weight.stored, P(BATCH_AXES, "context")
    by_columns = _by_columns(stored, (vocabulary, cotangent.shape[-1]))

    def on_device(tokens, cotangent):
        if by_columns:
            cotangent = _exchanged(_exchanged(cotangent, _SHARED_BATCH_AXES, 2, 0), ("context",), 2, 1)
            tokens = _of_all(tokens)
        sums = jnp.zeros((vocabulary, cotangent.shape[-1]), jnp.float32).at[tokens].add(cotangent.astype(jnp.float32))
        if by_columns:
            return sum_over(sums.astype(weight.gradient_dtype), ("replica",))
        return sum_to_own(sums.astype(weight.gradient_dtype), stored)

    gradient = jax.shard_map(
        on_device, in_specs=(placed, P(*placed, gathered(stored)[1])), out_specs=stored, check_vma=False
    )(tokens, cotangent)
    return gradient.astype(like_table.dtype), None


_over_mesh.defvjp(_forward, _backward)


def _by_columns(stored: P, shape: tuple[int, int]) -> bool:
    """Whether devices look up tokens of all in their own columns."""
    sizes = jax.sharding.get_abstract_mesh().shape
    axes = stored[1] if isinstance(stored[1], tuple) else (stored[1],)
    if stored[0] is not None or not set(PARAM_AXES) <= set(axes):
        return False
    return shape[1] // math.prod(sizes[axis] for axis in axes) >= LANES


def _of_all(tokens: Int[Array, "b s"]) -> Int[Array, "B S"]:
    """The tokens of all devices that hold other columns."""
    for axes, dim in ((("context",), 1), (_SHARED_BATCH_AXES, 0)):
        if names := several(axes):
            tokens = jax.lax.all_gather(tokens, names, axis=dim, tiled=True)
    return tokens


def _exchanged(x: Array, axes: tuple[str, ...], split: int, joined: int) -> Array:
    """What was whole along the dimension `split`, and is along `joined` now."""
    names = several(axes)
    return jax.lax.all_to_all(x, names, split, joined, tiled=True) if names else x
