"""Sums over the branches of sequences: from values of target slots to a value for each answer, and back.

The branches of an example are numbered by their places among `per`: of a pair 1 is its chosen answer and 2 its rejected
one. An example has at least two targets, so that P slots hold at most P // 2 examples.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

PAIR = 2  # branches of a pair


def by_branch(
    values: Float[Array, "B P"], branches: Int[Array, "B P"], per: int = PAIR
) -> Float[Array, "B examples per"]:
    """The sum of `values` over each branch; example k of a sequence has its branches per k + 1 to per k + per.

    Slots of branch 0 are left out, whatever their values are.
    """
    examples = values.shape[1] // 2
    count = per * examples
    of_sequence = lambda values, branches: jax.ops.segment_sum(values, branches, num_segments=count + 1)
    sums = jax.vmap(of_sequence)(jnp.where(branches > 0, values, 0.0), branches)
    return sums[:, 1:].reshape(len(values), examples, per)


def to_slots(values: Float[Array, "B examples per"], branches: Int[Array, "B P"]) -> Float[Array, "B P"]:
    """For each slot the value of its branch; 0 for slots of none."""
    flat = values.reshape(len(values), -1)
    return jnp.take_along_axis(jnp.pad(flat, [(0, 0), (1, 0)]), branches, axis=1)


def ranks(branches: Int[Array, "B P"]) -> Int[Array, "B P"]:
    """The place of each target among those of its branch, from 0; they stand in order, one branch behind the other."""
    slots = jnp.broadcast_to(jnp.arange(branches.shape[1], dtype=jnp.int32)[None], branches.shape)
    begins = jnp.diff(branches, axis=1, prepend=-1) != 0
    return slots - jax.lax.cummax(jnp.where(begins, slots, 0), axis=1)


def lengths_of(weights: Float[Array, "B P"], branches: Int[Array, "B P"], per: int = PAIR) -> Float[Array, "B _ per"]:
    """The targets of each branch; 0 for branches that are not there."""
    return by_branch(jnp.where(weights > 0, 1.0, 0.0), branches, per)


def branch_weights(
    weights: Float[Array, "B P"], branches: Int[Array, "B P"], per: int = PAIR
) -> Float[Array, "B examples per"]:
    """The weight of each branch: that which all of its targets have; 0 for branches that are not there."""
    return by_branch(weights, branches, per) / jnp.maximum(lengths_of(weights, branches, per), 1.0)


def pair_weights(weights: Float[Array, "B P"], branches: Int[Array, "B P"]) -> Float[Array, "B pairs"]:
    """The weight of each pair: that which all of its targets have."""
    counts = jnp.sum(lengths_of(weights, branches), axis=2)
    return jnp.sum(by_branch(weights, branches), axis=2) / jnp.maximum(counts, 1.0)
