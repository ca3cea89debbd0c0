"""The loss of each slice of the data (a source of a mixture, a group of held-out examples), beside that of all."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

LOSS_BY_SLICE = "loss_by_slice"  # the metric: a sum and a count for each slice


def loss_by_slice(
    objective: Callable[[Array, Array, Array], dict[str, tuple[Array, Array]]],
    logits: Float[Array, "B P *V"],
    targets: Int[Array, "B P"],
    weights: Float[Array, "B P"],
    slices: Int[Array, "B P"],
    count: int,
) -> tuple[Float[Array, "slices"], Float[Array, "slices"]]:
    """The objective's `loss` with the weights of all other slices set to 0: exact for any objective.

    Only what depends on the weights is computed for each slice; it has no gradient.

    Args:
        objective: of (logits, targets, weights).
        logits: float32.
        targets: token to predict.
        weights: weight of each target.
        slices: the number of the slice each target belongs to.
        count: how many slices there are.

    Returns:
        Sums and counts, which add up to those of all targets.
    """
    logits = jax.lax.stop_gradient(logits)

    def of_slice(number: Array) -> tuple[Array, Array]:
        return objective(logits, targets, jnp.where(slices == number, weights, 0.0))["loss"]

    return jax.vmap(of_slice)(jnp.arange(count))


def means_by_slice(name: str, slices: Sequence[str], pair: tuple[np.ndarray, np.ndarray] | None) -> dict[str, float]:
    """`<name>/<slice>` of each slice that had a target; a slice without a name is called "other".

    Args:
        name: of the metric.
        slices: names of the slices.
        pair: sum and count of each; None where nothing was measured.
    """
    if pair is None:
        return {}
    measured = zip(slices, *(np.asarray(part, np.float64).tolist() for part in pair), strict=True)
    return {f"{name}/{slice_ or 'other'}": total / count for slice_, total, count in measured if count > 0}
