"""The loss of reward models: of two answers to a prompt, the preferred one gets the higher score."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sft_jax.objectives.branches import by_branch, pair_weights
from sft_jax.objectives.pair_losses import PreferenceSettings


def bradley_terry(
    scores: Float[Array, "B P"],
    margins: Float[Array, "B P"],
    weights: Float[Array, "B P"],
    branches: Int[Array, "B P"],
    settings: PreferenceSettings,
) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
    """Sums and counts over the pairs of a batch, of which each is the branches 2 k + 1 (chosen) and 2 k + 2 (rejected).

    The loss is -ln sigmoid(c - r - margin) (Bradley and Terry 1952; with margins Touvron et al. 2023, Llama 2), and
    with `centring` that factor times (c + r)^2 more (Eisenstein et al. 2023, https://arxiv.org/abs/2312.09244), since
    the first term leaves open where scores lie.

    Worked example: scores 1.2 and 0.2 with a margin of 0.5: -ln sigmoid(0.5) = 0.4741; centring 0.01 adds 0.0196.

    Args:
        scores: of each answer, at its only slot, float32.
        margins: by how much the preferred answer is to be better, at both slots of a pair.
        weights: of each slot that of its pair; 0 is an unused slot.
        branches: the branch of its sequence that each slot belongs to; 0 is an unused slot.
        settings: `centring`, or None for none.

    Returns:
        `loss`, `accuracy`, `margin` (c - r), `chosen_reward` and `rejected_reward`, over pairs.
    """
    found, weight = by_branch(scores, branches), pair_weights(weights, branches)
    chosen, rejected = found[:, :, 0], found[:, :, 1]
    loss = -jax.nn.log_sigmoid(chosen - rejected - by_branch(margins, branches)[:, :, 0])
    if settings.centring is not None:
        loss = loss + settings.centring * (chosen + rejected) ** 2
    total = jnp.sum(weight)
    mean = lambda values: (jnp.sum(jnp.where(weight > 0, weight * values, 0.0)), total)
    return {
        "loss": mean(loss),
        "accuracy": mean(jnp.where(chosen > rejected, 1.0, 0.0)),
        "margin": mean(chosen - rejected),
        "chosen_reward": mean(chosen),
        "rejected_reward": mean(rejected),
    }
