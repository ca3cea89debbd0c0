"""Computes an objective's sums from hidden states, without ever holding all logits.

The vocabulary head is applied to chunks of target slots. Differentiated, each chunk yields its share of the gradients
in the forward pass itself, so that its logits are neither kept nor computed twice (three matrix products a chunk; a
checkpointed scan would need four).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

Tree = Any
# (trained head weights, frozen head weights, hidden [B, C, D], targets [B, C], weights [B, C], more of [B, C, …])
# -> name -> (sum, count)
HeadObjective = Callable[..., dict[str, tuple[Array, Array]]]


def gather_targets(hidden: Float[Array, "B S D"], target_slots: Int[Array, "B P"]) -> Float[Array, "B P D"]:
    """The hidden states that predict a target; all of them, untouched, where every position has a slot."""
    if target_slots.shape[1] == hidden.shape[1]:
        return hidden
    return jnp.take_along_axis(hidden, target_slots[:, :, None], axis=1)


def over_chunks(
    objective: HeadObjective,
    trained: Tree,
    frozen: Tree,
    hidden: Float[Array, "B P D"],
    targets: Int[Array, "B P"],
    weights: Float[Array, "B P"],
    chunk: int,
    more: tuple[Shaped[Array, "B P ..."], ...] = (),
) -> dict[str, tuple[Array, Array]]:
    """Sums and counts of `objective` over all slots, `chunk` slots of every sequence at a time.

    Args:
        objective: head and objective of one chunk.
        trained: head weights to be differentiated; may be empty.
        frozen: head weights that are not.
        hidden: hidden states of the target slots.
        targets: token ids.
        weights: weight of each target.
        chunk: slots of a sequence in a chunk; 0 or at least P takes all slots at once.
        more: what else the objective needs to know of each slot, without gradient; it gets them after the weights.
    """
    if chunk <= 0 or chunk >= hidden.shape[1]:
        return objective(trained, frozen, hidden, targets, weights, *more)
    slots = tuple(_split(x, chunk) for x in (targets, weights, *more))
    return _chunked(objective, trained, frozen, _split(hidden, chunk), slots)


def _split(x: Array, chunk: int) -> Array:
    """[B, P, …] -> [chunks, B, chunk, …], padded with zeros (weight 0)."""
    count = -(-x.shape[1] // chunk)
    padding = [(0, 0)] * x.ndim
    padding[1] = (0, count * chunk - x.shape[1])
    x = jnp.pad(x, padding)
    return jnp.moveaxis(x.reshape(x.shape[0], count, chunk, *x.shape[2:]), 1, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(objective, trained, frozen, hidden, slots):
    def body(_, chunk):
        return None, objective(trained, frozen, *chunk)

    return _total(jax.lax.scan(body, None, (hidden, *slots))[1])


def _total(stacked: Tree) -> Tree:
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), stacked)


def _chunked_forward(objective, trained, frozen, hidden, slots):
    def loss(trained, hidden, *slots):
        metrics = objective(trained, frozen, hidden, *slots)
        return metrics["loss"][0], metrics

    def body(trained_gradient, chunk):
        (_, metrics), (chunk_gradient, hidden_gradient) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
            trained, *chunk
        )
        return jax.tree.map(jnp.add, trained_gradient, chunk_gradient), (metrics, hidden_gradient)

    # Summed in float32: many small terms into a bf16 sum would be lost.
    zeros = jax.tree.map(lambda weight: jnp.zeros(weight.shape, jnp.float32), trained)
    trained_gradient, (metrics, hidden_gradient) = jax.lax.scan(body, zeros, (hidden, *slots))
    trained_gradient = jax.tree.map(lambda gradient, weight: gradient.astype(weight.dtype), trained_gradient, trained)
    return _total(metrics), (trained_gradient, hidden_gradient)


def _chunked_backward(objective, residuals, cotangent):
    del objective
    scale = cotangent["loss"][0]  # counts and the other metrics are only measured
    trained, hidden = jax.tree.map(lambda gradient: (gradient * scale).astype(gradient.dtype), residuals)
    return trained, None, hidden, None


_chunked.defvjp(_chunked_forward, _chunked_backward)
