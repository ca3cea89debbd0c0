"""Objectives of pairs: they raise the probability of the answer that is preferred over that of the other one.

A method scores each answer by the log-probability of its tokens, of which those with a reference subtract the
reference's, and compares the two scores. `loss` counts pairs, so that each weighs the same.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sft_jax.objectives.branches import by_branch, pair_weights, ranks, to_slots
from sft_jax.objectives.pair_losses import Loss, PreferenceSettings, hinge, ipo, odds_ratio, robust, sigmoid


@dataclasses.dataclass(frozen=True)
class Method:
    """How pairs are compared.

    Attributes:
        loss: of the scores of both answers.
        reference: scores are relative to what the run begins with.
        per_token: scores are always means over tokens.
        reads: fields of `config.objective` beside `beta` and `sft_weight`.
    """

    loss: Loss
    reference: bool = True
    per_token: bool = False
    reads: tuple[str, ...] = ("per_token", "tail_weight")


METHODS: dict[str, Method] = {
    "dpo": Method(sigmoid, reads=("label_smoothing", "per_token", "tail_weight")),
    "dpo_hinge": Method(hinge),
    "dpo_ipo": Method(ipo, per_token=True, reads=()),
    "dpo_robust": Method(robust, reads=("label_smoothing", "per_token", "tail_weight")),
    "simpo": Method(sigmoid, reference=False, per_token=True, reads=("margin", "label_smoothing")),
    "orpo": Method(odds_ratio, reference=False, per_token=True, reads=()),
    "cpo": Method(sigmoid, reference=False, reads=("label_smoothing",)),
}


def preference(
    log_probabilities: Float[Array, "B P"],
    reference: Float[Array, "B P"] | None,
    weights: Float[Array, "B P"],
    branches: Int[Array, "B P"],
    settings: PreferenceSettings,
    method: Method,
) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
    """Sums and counts over the pairs of a batch, of which each is the branches 2 k + 1 (chosen) and 2 k + 2 (rejected).

    Worked example, beta 0.1: chosen ln p = -12 (reference -13), rejected -15 (-14): margin 0.1 (1 + 1) = 0.2, so DPO's
    loss is -ln sigmoid(0.2) = 0.5981.

    Args:
        log_probabilities: of each target, float32.
        reference: the same of the reference; None for methods without.
        weights: of each target that of its pair; 0 is an unused slot.
        branches: the branch of its sequence that each target belongs to; 0 is an unused slot.
        settings: numbers of the method.
        method: how answers are compared.

    Returns:
        `loss`, `margin`, `accuracy`, `chosen_reward` and `rejected_reward` over pairs, rewards being beta times scores;
        and `nll` over the tokens of chosen answers.
    """
    lengths = by_branch(jnp.where(weights > 0, 1.0, 0.0), branches)
    safe = jnp.maximum(lengths, 1.0)
    weight = pair_weights(weights, branches)
    total = jnp.sum(weight)
    values = log_probabilities - reference if method.reference else log_probabilities
    if settings.tail_weight is not None:
        shared = to_slots(jnp.broadcast_to(jnp.min(lengths, axis=2, keepdims=True), lengths.shape), branches)
        values = values * jnp.where(ranks(branches) < shared, 1.0, settings.tail_weight)
    scores = by_branch(values, branches)
    scores = scores / safe if method.per_token or settings.per_token else scores
    chosen, rejected = scores[:, :, 0], scores[:, :, 1]
    loss, likelihood = method.loss(chosen, rejected, settings), by_branch(log_probabilities, branches)[:, :, 0]
    if settings.sft_weight is not None:
        loss = loss - settings.sft_weight * likelihood / safe[:, :, 0]
    rewards = settings.beta * scores
    mean = lambda values: (jnp.sum(jnp.where(weight > 0, weight * values, 0.0)), total)
    return {
        "loss": mean(loss),
        "margin": mean(rewards[:, :, 0] - rewards[:, :, 1]),
        "accuracy": mean(jnp.where(chosen > rejected, 1.0, 0.0)),
        "chosen_reward": mean(rewards[:, :, 0]),
        "rejected_reward": mean(rewards[:, :, 1]),
        "nll": (mean(-likelihood)[0], jnp.sum(weight * lengths[:, :, 0])),
    }


@functools.cache
def objective_of(method: Method) -> Callable[..., dict[str, tuple[Array, Array]]]:
    """`preference` by that method: the same function for equal methods, as programs are kept by it."""
    return functools.partial(preference, method=method)
