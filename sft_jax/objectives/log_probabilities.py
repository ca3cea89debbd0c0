"""The log-probability of every target, without ever holding all logits: what objectives of sequences are made of.

What a target counts in such a loss is known when all of its sequence are: so chunks of slots go through the head once
for their log-probabilities and, differentiated, once more with what each of them counts (four matrix products a chunk,
three where the head is not trained).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sft_jax.objectives.head import differentiated, values_of_slots
from sft_jax.objectives.head_on_mesh import HeadOnMesh

Tree = Any
Head = Callable[[Tree, Tree, Array], Array]  # (trained head weights, frozen head weights, hidden [B, C, D]) -> logits


def log_probabilities(
    head: Head,
    trained: Tree,
    frozen: Tree,
    hidden: Float[Array, "B P D"],
    targets: Int[Array, "B P"],
    chunk: int,
    on_mesh: HeadOnMesh | None = None,
) -> Float[Array, "B P"]:
    """The log-probability of each target, float32, `chunk` slots of every sequence at a time.

    Args:
        head: of one chunk.
        trained: head weights to be differentiated; may be empty.
        frozen: head weights that are not.
        hidden: hidden states of the target slots.
        targets: token ids.
        chunk: slots of a sequence in a chunk, on each device that has some of them; 0 or at least P takes all at once.
        on_mesh: how the weights are split and read; by default that is left to the compiler.
    """
    if chunk <= 0 or chunk >= hidden.shape[1]:
        if on_mesh is None:
            return _of_targets(head(trained, frozen, hidden), targets)
        chunk = hidden.shape[1]
    return _chunked(head, chunk, on_mesh, trained, frozen, hidden, targets)


def _of_targets(logits: Float[Array, "B C V"], targets: Int[Array, "B C"]) -> Float[Array, "B C"]:
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _chunked(head, chunk, on_mesh, trained, frozen, hidden, targets):
    of_chunk = lambda trained, frozen, hidden, targets: _of_targets(head(trained, frozen, hidden), targets)
    return values_of_slots(of_chunk, chunk, on_mesh, trained, frozen, hidden, (targets,))


def _forward(head, chunk, on_mesh, trained, frozen, hidden, targets):
    return _chunked(head, chunk, on_mesh, trained, frozen, hidden, targets), (trained, frozen, hidden, targets)


def _backward(head, chunk, on_mesh, residuals, cotangent):
    trained, frozen, hidden, targets = residuals

    def weighted(trained, frozen, hidden, targets, cotangent):
        total = jnp.sum(cotangent * _of_targets(head(trained, frozen, hidden), targets))
        return {"loss": (total, jnp.zeros(()))}

    function = functools.partial(differentiated, weighted, chunk, on_mesh)
    slots = (targets, cotangent)
    if on_mesh is None:
        _, (of_trained, of_hidden) = function(trained, frozen, hidden, slots)
    else:
        _, (of_trained, of_hidden) = on_mesh.run(function, trained, frozen, hidden, slots, gives="gradients")
    return of_trained, None, of_hidden, None


_chunked.defvjp(_forward, _backward)
