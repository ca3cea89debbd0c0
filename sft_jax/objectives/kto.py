"""KTO (Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306): answers that are wanted or not, one by one.

An answer is compared with a point of reference: how far the policy is from its reference, which the log-ratios of
answers to other prompts (`data/mismatched.py`) estimate. It is one number for all of a step.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sft_jax.objectives.branches import branch_weights, by_branch, lengths_of
from sft_jax.objectives.pair_losses import PreferenceSettings

KL = "kl"  # the metric: of answers to other prompts, the mean log-ratio
BRANCHES = 4  # of an example: wanted, not wanted, and behind each an answer to another prompt


def kto(
    log_probabilities: Float[Array, "B P"],
    reference: Float[Array, "B P"],
    weights: Float[Array, "B P"],
    branches: Int[Array, "B P"],
    settings: PreferenceSettings,
) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
    """Sums and counts over answers: of example k of a sequence, branch 4 k + 1 is wanted and 4 k + 2 is not.

    The loss of an answer is its side's weight times 1 - sigmoid(beta (r - z)), or of one that is not wanted
    1 - sigmoid(beta (z - r)); r is the sum of its log-ratios, and z = max(0, mean of those of branches 4 k + 3 and
    4 k + 4) has no gradient.

    Worked example, beta 0.5: r = 2 (wanted), 1 (not), others 3 and -2.5: z = 0.25, losses 1 - sigmoid(0.875) = 0.2942
    and 1 - sigmoid(-0.375) = 0.5927.

    Args:
        log_probabilities: of each target, float32.
        reference: the same of the reference.
        weights: of each target that of its example; 0 is an unused slot.
        branches: the branch of its sequence that each target belongs to; 0 is an unused slot.
        settings: its numbers. Where `kl` is given it is that of the whole step, of which this is a part.

    Returns:
        `loss` and `accuracy` (which side of z it is on) over answers, `chosen_reward` over those that are wanted and
        `rejected_reward` over the others, `nll` over tokens of those that are wanted, and `kl`.
    """
    ratios = by_branch(log_probabilities - reference, branches, BRANCHES)
    weight = branch_weights(weights, branches, BRANCHES)
    own, others = weight[:, :, :2], weight[:, :, 2:]
    divergence = _total(ratios[:, :, 2:], others)
    point = mean_divergence(divergence) if settings.kl is None else settings.kl
    rewards = settings.beta * ratios[:, :, :2]
    above = jnp.array([[[1.0, -1.0]]]) * (rewards - settings.beta * jax.lax.stop_gradient(point))
    factors = jnp.stack([settings.desirable_weight, settings.undesirable_weight])[None, None]
    losses = factors * jax.nn.sigmoid(-above)
    likelihood = by_branch(log_probabilities, branches, BRANCHES)[:, :, 0]
    lengths = lengths_of(weights, branches, BRANCHES)[:, :, 0]
    return {
        "loss": _total(losses, own),
        "accuracy": _total(jnp.where(above > 0, 1.0, 0.0), own),
        "chosen_reward": _total(rewards[:, :, 0], own[:, :, 0]),
        "rejected_reward": _total(rewards[:, :, 1], own[:, :, 1]),
        "nll": (_total(-likelihood, own[:, :, 0])[0], jnp.sum(own[:, :, 0] * lengths)),
        KL: divergence,
    }


def mean_divergence(divergence: tuple[Array, Array]) -> Float[Array, ""]:
    """The point of reference z of a sum and a count of log-ratios."""
    total, count = divergence
    return jnp.maximum(total / jnp.maximum(count, jnp.finfo(jnp.float32).tiny), 0.0)


def answer_weights(weights: Float[Array, "B P"], branches: Int[Array, "B P"]) -> Float[Array, "B examples 2"]:
    """The weight of each answer; 0 for one that is not there."""
    return branch_weights(weights, branches, BRANCHES)[:, :, :2]


def _total(values: Array, weights: Array) -> tuple[Array, Array]:
    return jnp.sum(jnp.where(weights > 0, weights * values, 0.0)), jnp.sum(weights)
