"""Rematerialization: what a layer saves in the forward pass, so that the backward pass need not compute it again.

A policy is called by what it saves beside the layer's input; all else is computed again (Chen et al. 2016). Values are
known by a name: products of `Linear` and of experts by that of their weights, attention's by `KEPT`.
"""

from collections.abc import Callable
from typing import Any

import jax

from sft_jax.models.attention import KEPT

_OF_ATTENTION = (
    *(KEPT, "query", "key", "value", "output_gate", "out"),
    *("query_a", "query_b", "key_value_a", "key_value_b"),
)
_OF_FEED_FORWARD = ("gate", "up", "down", "router")

# What is saved beside the layer's input, from least to most. A result that the backward pass has no use for (of `down`,
# where no norm follows) is not kept whatever its name. `none` saves everything.
SAVED: dict[str, tuple[str, ...]] = {
    "full": (),
    "attention": (KEPT,),  # attention's output, and a log-sum-exp for each query
    "attention_products": _OF_ATTENTION,  # and the projections around it
    "products": (*_OF_ATTENTION, *_OF_FEED_FORWARD),  # and those of the feed-forward part
}


def saving_policy(remat: str) -> Callable[..., Any]:
    """The policy for `jax.checkpoint` of a layer.

    Args:
        remat: one of SAVED.
    """
    return jax.checkpoint_policies.save_only_these_names(*SAVED[remat])
