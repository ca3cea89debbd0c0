"""Objectives whose loss is not finite on some batches: where the sum of a sequence's targets is a multiple of a number.

An objective sees parts of a batch, by sequences; so the same batches are poisoned on any number of devices.
"""

import jax.numpy as jnp

from sft_jax.objectives import OBJECTIVES, cross_entropy

MULTIPLE = 11


def poisoned(logits, targets, weights, settings):
    metrics = cross_entropy(logits, targets, weights, settings)
    total, count = metrics["loss"]
    sums = jnp.sum(targets * (weights > 0), axis=-1)
    has_poison = jnp.any((sums > 0) & (sums % MULTIPLE == 0))
    return metrics | {"loss": (total * jnp.where(has_poison, jnp.nan, 1.0), count)}


def always(logits, targets, weights, settings):
    metrics = cross_entropy(logits, targets, weights, settings)
    total, count = metrics["loss"]
    return metrics | {"loss": (total * jnp.nan, count)}


OBJECTIVES["poisoned"] = poisoned
OBJECTIVES["always poisoned"] = always
