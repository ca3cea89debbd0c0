"""Kullback-Leibler divergence of next-token distributions, and the term of a loss that keeps a model near its base.

`kl_divergence` is also what `evaluation/divergence.py` measures of two finished models.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

KL_TO_BASE = "kl_to_base"  # the metric, and the field of `config.objective`

SumsAndCounts = dict[str, tuple[Array, Array]]


def kl_divergence(reference: Float[Array, "*B V"], logits: Float[Array, "*B V"]) -> Float[Array, "*B"]:
    """KL(p || q) = sum_v p(v) ln(p(v) / q(v)) in nats, p of the logits `reference` and q of `logits`, both float32.

    Worked example: p = (1/2, 1/2) and q = (1/4, 3/4) give 1/2 ln 2 + 1/2 ln(2/3) = 0.1438.
    """
    return kl_of_log_probabilities(jax.nn.log_softmax(reference, axis=-1), jax.nn.log_softmax(logits, axis=-1))


def kl_of_log_probabilities(log_p: Float[Array, "*B V"], log_q: Float[Array, "*B V"]) -> Float[Array, "*B"]:
    """The same of distributions given by finite log-probabilities."""
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def with_kl(
    metrics: SumsAndCounts, divergence: Float[Array, "B P"], weights: Float[Array, "B P"], factor: Float[Array, ""]
) -> SumsAndCounts:
    """The metrics of an objective with the divergence from the base added to `loss`, and as `kl_to_base` beside it.

    `divergence` is KL(base || policy), the direction of learning without forgetting (Li and Hoiem 2016,
    https://arxiv.org/abs/1606.09282), whose distillation from the old model has the same gradient: what the base
    thinks likely stays possible. It is also the direction that forgetting was found to follow when it is measured on
    the new task (Shenfeld et al. 2025, https://arxiv.org/abs/2509.04259).

    It is weighted like the loss, and summed over the same targets: their count is that of `loss`.

    Args:
        metrics: of the objective, sums and counts.
        divergence: of each target, in nats.
        weights: of each target; 0 leaves it out.
        factor: of the divergence in the loss.
    """
    total, weight = sum_and_count(divergence, weights)
    loss, count = metrics["loss"]
    return metrics | {"loss": (loss + factor * total, count), KL_TO_BASE: (total, weight)}


def sum_and_count(divergence: Float[Array, "B P"], weights: Float[Array, "B P"]) -> tuple[Array, Array]:
    """The divergences of all targets, weighted, and the weights; an infinite one without a weight does not count."""
    return jnp.sum(jnp.where(weights > 0, divergence * weights, 0.0)), jnp.sum(weights)
