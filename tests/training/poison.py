"""An objective whose loss is not finite on some batches: where the sum of the targets is a multiple of three."""

import jax.numpy as jnp

from sft_jax.objectives import OBJECTIVES, cross_entropy


def poisoned(logits, targets, weights, settings):
    metrics = cross_entropy(logits, targets, weights, settings)
    total, count = metrics["loss"]
    return metrics | {"loss": (total * jnp.where(jnp.sum(targets) % 3 == 0, jnp.nan, 1.0), count)}


def always(logits, targets, weights, settings):
    metrics = cross_entropy(logits, targets, weights, settings)
    total, count = metrics["loss"]
    return metrics | {"loss": (total * jnp.nan, count)}


OBJECTIVES["poisoned"] = poisoned
OBJECTIVES["always poisoned"] = always
