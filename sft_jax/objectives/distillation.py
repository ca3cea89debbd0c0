"""The objective of distillation: a divergence of the student from its teacher at each target, and the cross-entropy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sft_jax.objectives.cross_entropy import Settings, cross_entropy
from sft_jax.objectives.divergences import DistillationSettings, Divergence
from sft_jax.objectives.kl import sum_and_count


class Outcomes(NamedTuple):
    """Two distributions of the next token at each slot.

    Attributes:
        teacher: log-probabilities of outcomes, float32, without gradient.
        student: of the same outcomes.
        agrees: whether the teacher's most likely token is the student's.
    """

    teacher: Float[Array, "B P outcomes"]
    student: Float[Array, "B P outcomes"]
    agrees: Bool[Array, "B P"]


def of_all_tokens(
    teacher: Float[Array, "B P teacher_vocabulary"],
    student: Float[Array, "B P vocabulary"],
    temperature: Float[Array, ""] | float | None = None,
) -> Outcomes:
    """The outcomes are the tokens that both know: embeddings of one of them may be padded to a larger number.

    Args:
        teacher: its logits, float32.
        student: likewise.
        temperature: of both; None is 1.
    """
    shared = min(teacher.shape[-1], student.shape[-1])
    teacher, student = jax.lax.stop_gradient(teacher[..., :shared]), student[..., :shared]
    best = jnp.argmax(teacher, axis=-1)[..., None]
    of_best = jnp.take_along_axis(student, best, axis=-1)[..., 0]
    log_p = lambda logits: jax.nn.log_softmax(at_temperature(logits, temperature), axis=-1)
    return Outcomes(log_p(teacher), log_p(student), of_best >= jnp.max(student, axis=-1))


def at_temperature(logits: Float[Array, "*B V"], temperature: Float[Array, ""] | float | None) -> Float[Array, "*B V"]:
    """Logits divided by the temperature, where there is one."""
    return logits if temperature is None else logits / temperature


def distillation(
    logits: Float[Array, "B P V"],
    targets: Int[Array, "B P"],
    weights: Float[Array, "B P"],
    outcomes: Outcomes,
    divergence: Divergence,
    settings: DistillationSettings,
) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
    """Sums and counts of one batch of logits.

    Args:
        logits: of the student, float32.
        targets: tokens of the data.
        weights: weight of each target; 0 leaves it out altogether.
        outcomes: distributions of teacher and student, at the temperature.
        divergence: of `DIVERGENCES`.
        settings: numbers.

    Returns:
        `loss` (what is minimised), `divergence` (times the square of the temperature, so that its gradient does not
        fade with it: Hinton et al. 2015), `nll` and `accuracy` as of `cross_entropy`, and `agreement` (share of targets
        at which teacher and student have the same most likely token).
    """
    found = divergence(outcomes.teacher, outcomes.student, settings)
    if settings.temperature is not None:
        found = settings.temperature**2 * found
    metrics = cross_entropy(logits, targets, weights, Settings())
    total, count = sum_and_count(found, weights)
    loss = total
    if (share := settings.cross_entropy_share) is not None:
        loss = (1 - share) * total + share * metrics["nll"][0]
    used = weights > 0
    agreement = (jnp.sum(used & outcomes.agrees, dtype=jnp.float32), jnp.sum(used, dtype=jnp.float32))
    return metrics | {"loss": (loss, count), "divergence": (total, count), "agreement": agreement}
