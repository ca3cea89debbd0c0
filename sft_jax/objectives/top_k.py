"""A teacher's most likely tokens, and one outcome for all others: what is kept of it where it is not in the step.

The rest is an outcome like the tokens: without it a student would be free to put its probability there, and a reverse
divergence of part of a distribution may fall below 0. Whatever is merged into one outcome can only make a divergence
smaller, so that it is a lower bound of the whole one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sft_jax.objectives.distillation import Outcomes, at_temperature
from sft_jax.objectives.head import values_of_slots
from sft_jax.objectives.head_on_mesh import HeadOnMesh

Tree = Any
Ids = Int[Array, "B P k"]
LogProbabilities = Float[Array, "B P outcomes"]


def outcomes_of(k: int, vocabulary: int) -> int:
    """Of the k most likely of so many tokens: there is no rest where they are all."""
    return k + (k < vocabulary)


def most_likely(
    logits: Float[Array, "B P V"], k: int, temperature: Float[Array, ""] | float | None = None
) -> tuple[Ids, LogProbabilities]:
    """The k most likely tokens, the first one first, and log-probabilities of them and, behind them, of the rest.

    Probabilities 1/2, 1/4, 1/8, 1/8 and k = 2: tokens 0 and 1, and the logarithms of 1/2, 1/4, 1/4.

    Args:
        logits: float32.
        k: at most V; of V tokens there is no rest.
        temperature: of the distribution; None is 1.
    """
    logits = at_temperature(logits, temperature)
    ids = jax.lax.top_k(logits, k)[1].astype(jnp.int32)
    return ids, _log_probabilities(logits, ids)


def _log_probabilities(logits: Float[Array, "B P V"], ids: Ids) -> LogProbabilities:
    """Of these tokens and of the rest. The rest is summed up by itself: 1 less the others would be lost to rounding."""
    chosen = jnp.take_along_axis(logits, ids, axis=-1)
    log_z = jax.nn.logsumexp(chosen, axis=-1, keepdims=True)
    if ids.shape[-1] == logits.shape[-1]:
        return chosen - log_z
    others = jnp.put_along_axis(logits, ids, -jnp.inf, axis=-1, inplace=False)
    rest = jax.nn.logsumexp(others, axis=-1, keepdims=True)
    return jnp.concatenate([chosen, rest], axis=-1) - jnp.logaddexp(log_z, rest)


def of_most_likely(
    ids: Ids,
    teacher: LogProbabilities,
    student: Float[Array, "B P V"],
    vocabulary: int,
    temperature: Float[Array, ""] | float | None = None,
) -> Outcomes:
    """The outcomes are the teacher's most likely tokens and the rest of those that both know.

    Args:
        ids: of the tokens, as `most_likely` gives them.
        teacher: log-probabilities that belong to them, at the temperature.
        student: its logits, float32.
        vocabulary: tokens that both know, the first so many.
        temperature: of the student; None is 1.
    """
    student = student[..., :vocabulary]
    of_best = jnp.take_along_axis(student, ids[..., :1], axis=-1)[..., 0]
    found = _log_probabilities(at_temperature(student, temperature), ids)
    return Outcomes(teacher, found, of_best >= jnp.max(student, axis=-1))


def most_likely_of_states(
    head: Callable[[Tree, Array], Array],
    weights: Tree,
    hidden: Float[Array, "B P D"],
    k: int,
    vocabulary: int,
    chunk: int,
    temperature: Float[Array, ""] | float | None = None,
    on_mesh: HeadOnMesh | None = None,
) -> tuple[Ids, LogProbabilities]:
    """`most_likely` of hidden states, `chunk` slots of every sequence at a time.

    Args:
        head: (weights, hidden [B, C, D]) -> logits.
        weights: that the head reads.
        hidden: hidden states of the target slots.
        k: how many tokens.
        vocabulary: of the first so many.
        chunk: slots of a sequence in a chunk, on each device that has some of them; 0 takes all at once.
        temperature: of the distribution; None is 1.
        on_mesh: how the weights are split and read; by default that is left to the compiler.
    """
    chunk = hidden.shape[1] if chunk <= 0 else chunk
    of_chunk = lambda _, weights, hidden: most_likely(head(weights, hidden)[..., :vocabulary], k, temperature)
    return values_of_slots(of_chunk, chunk, on_mesh, {}, weights, hidden, ())
