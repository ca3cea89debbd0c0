"""Computes an objective's sums from hidden states, without ever holding all logits.

The vocabulary head is applied to chunks of target slots. Differentiated, each chunk yields its share of the gradients
in the forward pass itself, so that its logits are neither kept nor computed twice (three matrix products a chunk; a
checkpointed scan would need four). How the head lies on a mesh meanwhile is in `head_on_mesh`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from sft_jax.models.partitioning import BATCH_AXES, constrain
from sft_jax.objectives.head_on_mesh import HeadOnMesh

Tree = Any
# (trained head weights, frozen head weights, hidden [B, C, D], targets [B, C], weights [B, C], more of [B, C, …])
# -> name -> (sum, count)
HeadObjective = Callable[..., dict[str, tuple[Array, Array]]]


def gather_targets(hidden: Float[Array, "B S D"], target_slots: Int[Array, "B P"]) -> Float[Array, "B P D"]:
    """The hidden states that predict a target; all of them, untouched, where every position has a slot."""
    if target_slots.shape[1] == hidden.shape[1]:
        return hidden
    return constrain(jnp.take_along_axis(hidden, target_slots[:, :, None], axis=1), BATCH_AXES, "context", None)


def chunk_of(tokens: int, sequences: int) -> int:
    """Slots of a sequence in a chunk, so that a device that has so many `sequences` takes about `tokens` at a time.

    0, for all at once, where `tokens` is 0.
    """
    return max(1, tokens // sequences) if tokens else 0


def over_chunks(
    objective: HeadObjective,
    trained: Tree,
    frozen: Tree,
    hidden: Float[Array, "B P D"],
    targets: Int[Array, "B P"],
    weights: Float[Array, "B P"],
    chunk: int,
    more: tuple[Shaped[Array, "B P ..."], ...] = (),
    on_mesh: HeadOnMesh | None = None,
) -> dict[str, tuple[Array, Array]]:
    """Sums and counts of `objective` over all slots, `chunk` slots of every sequence at a time.

    Where slots are split over the mesh axis `context`, each of its devices takes `chunk` of its own.

    Args:
        objective: head and objective of one chunk.
        trained: head weights to be differentiated; may be empty.
        frozen: head weights that are not.
        hidden: hidden states of the target slots.
        targets: token ids.
        weights: weight of each target.
        chunk: slots of a sequence in a chunk, on each device that has some of them; 0 or at least P takes all at once.
        more: what else the objective needs to know of each slot, without gradient; it gets them after the weights.
        on_mesh: how the weights are split and read; by default that is left to the compiler.
    """
    whole = chunk <= 0 or chunk >= hidden.shape[1]
    if whole and on_mesh is None:
        return objective(trained, frozen, hidden, targets, weights, *more)
    chunk = hidden.shape[1] if whole else chunk
    return _chunked(objective, chunk, on_mesh, trained, frozen, hidden, (targets, weights, *more))


def split_slots(x: Array, chunk: int, parts: int) -> Array:
    """[B, P, …] -> [chunks, B, parts * chunk, …]: a chunk has some slots of each of so many parts of a sequence.

    Padded with zeros (weight 0).
    """
    batch, slots, *rest = x.shape
    count = -(-(slots // parts) // chunk)
    x = x.reshape(batch, parts, slots // parts, *rest)
    padding = [(0, 0)] * x.ndim
    padding[2] = (0, count * chunk - slots // parts)
    x = jnp.pad(x, padding).reshape(batch, parts, count, chunk, *rest)
    return jnp.moveaxis(x, 2, 0).reshape(count, batch, parts * chunk, *rest)


def joined_slots(x: Array, slots: int, parts: int) -> Array:
    """The inverse: [chunks, B, parts * chunk, …] -> [B, P, …]."""
    count, batch, width, *rest = x.shape
    x = jnp.moveaxis(x.reshape(count, batch, parts, width // parts, *rest), 0, 2)
    x = x.reshape(batch, parts, count * (width // parts), *rest)[:, :, : slots // parts]
    return x.reshape(batch, slots, *rest)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _chunked(objective, chunk, on_mesh, trained, frozen, hidden, slots):
    function = functools.partial(_measured, objective, chunk, on_mesh)
    if on_mesh is None:
        return function(trained, frozen, hidden, slots)
    return on_mesh.run(function, trained, frozen, hidden, slots, gives="metrics")


def _measured(objective, chunk, on_mesh, trained, frozen, hidden, slots):
    """Sums and counts."""
    metrics = _total(of_chunks(objective, chunk, on_mesh, trained, frozen, hidden, slots))
    return metrics if on_mesh is None else on_mesh.total(metrics)


def of_chunks(function, chunk, on_mesh, trained, frozen, hidden, slots):
    """What `function` gives of the head weights, and of the hidden states and slots of each chunk, stacked."""
    parts = 1
    if on_mesh is not None:
        trained, frozen, parts = on_mesh.read(trained), on_mesh.read(frozen), on_mesh.parts

    def body(_, of_chunk):
        hidden, *slots = of_chunk
        return None, function(trained, frozen, hidden if on_mesh is None else on_mesh.of_all(hidden), *slots)

    chunks = jax.tree.map(lambda x: split_slots(x, min(chunk, x.shape[1] // parts), parts), (hidden, *slots))
    return jax.lax.scan(body, None, chunks)[1]


def values_of_slots(function, chunk, on_mesh, trained, frozen, hidden, slots):
    """What `function` gives each slot of a chunk, arrays [B, C, …], for all slots: [B, P, …]; it is not differentiated.

    Arguments as of `over_chunks`; `slots` are further arrays [B, P, …] that `function` takes after the hidden states.
    """
    if on_mesh is None:
        return _values_of_slots(function, chunk, on_mesh, trained, frozen, hidden, slots)
    values = functools.partial(_values_of_slots, function, chunk, on_mesh)
    return on_mesh.run(values, trained, frozen, hidden, slots, gives="slots")


def _values_of_slots(function, chunk, on_mesh, trained, frozen, hidden, slots):
    own = lambda found: found if on_mesh is None else jax.tree.map(on_mesh.own, found)
    of_chunk = lambda *arguments: own(function(*arguments))
    found = of_chunks(of_chunk, chunk, on_mesh, trained, frozen, hidden, slots)
    parts = 1 if on_mesh is None else on_mesh.parts
    return jax.tree.map(lambda values: joined_slots(values, hidden.shape[1], parts), found)


def _total(stacked: Tree) -> Tree:
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), stacked)


def _chunked_forward(objective, chunk, on_mesh, trained, frozen, hidden, slots):
    function = functools.partial(differentiated, objective, chunk, on_mesh)
    if on_mesh is None:
        return function(trained, frozen, hidden, slots)
    return on_mesh.run(function, trained, frozen, hidden, slots, gives="gradients")


def differentiated(objective, chunk, on_mesh, trained, frozen, hidden, slots):
    """Sums and counts, and the gradients of the loss's sum by trained weights and hidden states."""
    read, parts = trained, 1
    if on_mesh is not None:
        read, frozen, parts = on_mesh.read(trained), on_mesh.read(frozen), on_mesh.parts

    def loss(weights, hidden, *slots):
        metrics = objective(weights, frozen, hidden, *slots)
        return metrics["loss"][0], metrics

    differentiate = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)

    def body(sums, of_chunk):
        weights, (hidden, *slots) = read, of_chunk
        if on_mesh is not None:
            # What was read in few bits is differentiated in float32: products cast it back, and no gradient is rounded.
            weights, hidden = jax.tree.map(_wide, read), on_mesh.of_all(hidden)
        (_, metrics), (of_weights, of_hidden) = differentiate(weights, hidden, *slots)
        sums = jax.tree.map(jnp.add, sums, of_weights)
        if on_mesh is not None:
            sums, of_hidden = on_mesh.like_read(sums), on_mesh.own(of_hidden)
        return sums, (metrics, of_hidden)

    # Summed in float32: many small terms into a bf16 sum would be lost.
    zeros = jax.tree.map(lambda weight: jnp.zeros(weight.shape, jnp.float32), read)
    chunks = jax.tree.map(lambda x: split_slots(x, min(chunk, x.shape[1] // parts), parts), (hidden, *slots))
    sums, (metrics, of_hidden) = jax.lax.scan(body, zeros, chunks)
    of_hidden, metrics = joined_slots(of_hidden, hidden.shape[1], parts), _total(metrics)
    if on_mesh is None:
        return metrics, (jax.tree.map(lambda gradient, weight: gradient.astype(weight.dtype), sums, trained), of_hidden)
    return on_mesh.total(metrics), (on_mesh.summed(sums, trained), of_hidden)


def _wide(weight: Array) -> Array:
    return weight.astype(jnp.float32)


def _chunked_backward(objective, chunk, on_mesh, residuals, cotangent):
    del objective, chunk, on_mesh
    scale = cotangent["loss"][0]  # counts and the other metrics are only measured
    trained, hidden = jax.tree.map(lambda gradient: (gradient * scale).astype(gradient.dtype), residuals)
    return trained, None, hidden, None


_chunked.defvjp(_chunked_forward, _chunked_backward)
