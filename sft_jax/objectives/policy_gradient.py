"""The clipped objective of sampled answers: it makes those likelier that are better than others to the same prompt.

Each answer has an advantage, and each of its tokens the log-probability with which it was drawn. The loss of a token is
that of PPO (Schulman et al. 2017, https://arxiv.org/abs/1707.06347) with two clip bounds (DAPO, Yu et al. 2025,
https://arxiv.org/abs/2503.14476), and a divergence from a reference may be added.
"""

from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sft_jax.objectives.branches import ranks


@flax.struct.dataclass
class PolicySettings:
    """Numbers of the objective, as scalars: arrays in the compiled step.

    Attributes:
        clip_low: a probability counts as no less than (1 - clip_low) times that with which its token was drawn.
        clip_high: and as no more than (1 + clip_high) times that.
        kl_weight: factor of the divergence from the reference; None: there is no reference.
        per_token: the loss is a mean over tokens, not over answers.
    """

    clip_low: Any
    clip_high: Any
    kl_weight: Any = None
    per_token: bool = flax.struct.field(pytree_node=False, default=True)


def k3(policy: Float[Array, "*slots"], reference: Float[Array, "*slots"]) -> Float[Array, "*slots"]:
    """An estimate of KL(policy || reference) from a token that the policy drew: unbiased, and never below 0 (Schulman
    2020, http://joschu.net/blog/kl-approx.html).

    Log-probabilities -1 to -1.2: e^-0.2 + 0.2 - 1 = 0.0187.
    """
    ratio = reference - policy
    return jnp.exp(ratio) - ratio - 1


def clipped(
    log_ratio: Float[Array, "*slots"], advantages: Float[Array, "*slots"], settings: PolicySettings
) -> Float[Array, "*slots"]:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) with r = e^log_ratio.

    At bounds of 0.2: log-ratio 1 and advantage 1 give -1.2, log-ratio 1 and advantage -1 give 2.7183.
    """
    ratio = jnp.exp(log_ratio)
    bounded = jnp.clip(ratio, 1 - settings.clip_low, 1 + settings.clip_high)
    return -jnp.minimum(ratio * advantages, bounded * advantages)


def answers_in(weights: Float[Array, "B P"], branches: Int[Array, "B P"]) -> Float[Array, ""]:
    """How many answers there are: first targets of a branch."""
    return jnp.sum((weights > 0) & (ranks(branches) == 0), dtype=jnp.float32)


def count_of(weights: Float[Array, "B P"], branches: Int[Array, "B P"], *, per_token: bool) -> Float[Array, ""]:
    """What the loss is divided by: tokens or answers."""
    return jnp.sum(weights) if per_token else answers_in(weights, branches)


def policy_gradient(
    log_probabilities: Float[Array, "B P"],
    drawn: Float[Array, "B P"],
    advantages: Float[Array, "B P"],
    reference: Float[Array, "B P"] | None,
    weights: Float[Array, "B P"],
    branches: Int[Array, "B P"],
    settings: PolicySettings,
) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
    """Sums and counts over the tokens of sampled answers.

    What a token weighs says how the loss is normalised: 1 for `tokens`, 1 / (tokens of its answer) for `examples`, and
    1 / (tokens of the longest answer there may be) for `constant`.

    Args:
        log_probabilities: of each target, float32.
        drawn: the same when it was drawn.
        advantages: of each target that of its answer.
        reference: log-probabilities of the reference; None where there is none.
        weights: of each target; 0 is an unused slot.
        branches: the answer of its sequence that each target belongs to; 0 is an unused slot.
        settings: numbers of the objective.

    Returns:
        `loss`; over tokens `entropy` (their mean negative log-probability estimates it), `sampler_gap` (by how much
        their log-probability differs from that when they were drawn), `clipped_low` and `clipped_high` (shares of
        tokens that a bound leaves without gradient), and with a reference `kl`.
    """
    used = weights > 0
    log_ratio = jnp.where(used, log_probabilities - drawn, 0.0)
    loss = clipped(log_ratio, advantages, settings)
    over_tokens = lambda values: (jnp.sum(jnp.where(used, values, 0.0)), jnp.sum(used, dtype=jnp.float32))
    metrics = {}
    if settings.kl_weight is not None:
        divergence = k3(log_probabilities, reference)
        loss = loss + settings.kl_weight * divergence
        metrics["kl"] = over_tokens(divergence)
    total = jnp.sum(jnp.where(used, weights * loss, 0.0))
    ratio = jnp.exp(log_ratio)
    return {
        "loss": (total, count_of(weights, branches, per_token=settings.per_token)),
        "entropy": over_tokens(-log_probabilities),
        "sampler_gap": over_tokens(jnp.abs(log_ratio)),
        "clipped_low": over_tokens(((ratio < 1 - settings.clip_low) & (advantages < 0)).astype(jnp.float32)),
        "clipped_high": over_tokens(((ratio > 1 + settings.clip_high) & (advantages > 0)).astype(jnp.float32)),
        **metrics,
    }
