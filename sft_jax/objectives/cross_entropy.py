"""Weighted next-token cross-entropy, with label smoothing and z-loss."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@flax.struct.dataclass
class Settings:
    """Numbers of an objective, as scalars: arrays in the compiled step. A term whose number is None is left out of it.

    Attributes:
        label_smoothing: share of the target's probability that is spread over the whole vocabulary (Szegedy et al.
            2016).
        z_loss: factor of the squared log-partition function (Chowdhery et al. 2022, PaLM).
    """

    label_smoothing: Any = None
    z_loss: Any = None


def cross_entropy(
    logits: Float[Array, "B P V"],
    targets: Int[Array, "B P"],
    weights: Float[Array, "B P"],
    settings: Settings,
) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
    """Sums and counts of one batch of logits.

    Worked example, one position, logits [0, ln 3], target 1, weight 2: probabilities 1/4 and 3/4, so
    `nll` = (2 * -ln(3/4), 2) = (0.5754, 2) and `accuracy` = (1, 1).

    Args:
        logits: float32.
        targets: token to predict.
        weights: weight of each target; 0 leaves it out altogether.
        settings: label smoothing and z-loss.

    Returns:
        `loss` (what is minimised), `nll` (plain cross-entropy in nats) and `accuracy` (greedy, over targets of
        weight > 0).
    """
    log_z = jax.nn.logsumexp(logits, axis=-1)
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    nll = log_z - target_logits
    loss = nll
    if settings.label_smoothing is not None:
        uniform = log_z - jnp.mean(logits, axis=-1)
        loss = (1 - settings.label_smoothing) * nll + settings.label_smoothing * uniform
    if settings.z_loss is not None:
        loss = loss + settings.z_loss * log_z**2
    used = weights > 0
    correct = used & (target_logits >= jnp.max(logits, axis=-1))
    total = jnp.sum(weights)
    return {
        "loss": (_weighted(loss, weights), total),
        "nll": (_weighted(nll, weights), total),
        "accuracy": (jnp.sum(correct, dtype=jnp.float32), jnp.sum(used, dtype=jnp.float32)),
    }


def _weighted(values: Array, weights: Array) -> Array:
    # where, not only the product: an infinite loss at an unused slot must not become 0 * inf = NaN.
    return jnp.sum(jnp.where(weights > 0, values * weights, 0.0))
