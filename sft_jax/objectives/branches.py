"""Sums over the branches of sequences: from values of target slots to a value for each answer of a pair, and back.

A pair has at least two targets, so that P slots hold at most P // 2 of them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def by_branch(values: Float[Array, "B P"], branches: Int[Array, "B P"]) -> Float[Array, "B pairs 2"]:
    """The sum of `values` over each branch; pair k of a sequence is its branches 2 k + 1 and 2 k + 2.

    Slots of branch 0 are left out, whatever their values are.
    """
    count = 2 * (values.shape[1] // 2)
    of_sequence = lambda values, branches: jax.ops.segment_sum(values, branches, num_segments=count + 1)
    sums = jax.vmap(of_sequence)(jnp.where(branches > 0, values, 0.0), branches)
    return sums[:, 1:].reshape(len(values), count // 2, 2)


def to_slots(values: Float[Array, "B pairs 2"], branches: Int[Array, "B P"]) -> Float[Array, "B P"]:
    """For each slot the value of its branch; 0 for slots of none."""
    flat = values.reshape(len(values), -1)
    return jnp.take_along_axis(jnp.pad(flat, [(0, 0), (1, 0)]), branches, axis=1)


def ranks(branches: Int[Array, "B P"]) -> Int[Array, "B P"]:
    """The place of each target among those of its branch, from 0; they stand in order, one branch behind the other."""
    slots = jnp.broadcast_to(jnp.arange(branches.shape[1], dtype=jnp.int32)[None], branches.shape)
    begins = jnp.diff(branches, axis=1, prepend=-1) != 0
    return slots - jax.lax.cummax(jnp.where(begins, slots, 0), axis=1)


def pair_weights(weights: Float[Array, "B P"], branches: Int[Array, "B P"]) -> Float[Array, "B pairs"]:
    """The weight of each pair: that which all of its targets have."""
    sums, counts = (by_branch(x, branches) for x in (weights, jnp.where(weights > 0, 1.0, 0.0)))
    return jnp.sum(sums, axis=2) / jnp.maximum(jnp.sum(counts, axis=2), 1.0)
