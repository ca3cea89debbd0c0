"""Which weights of a run are put to use: those trained, or an average of them over the steps.

An exponential moving average (EMA) is kept beside the trained weights where `config.ema.decay` asks for one. The
schedule-free rule trains at y and is used at x, the average that it does not store: x = (y - (1 - beta1) z) / beta1
with z from its state (Defazio et al. 2024, https://arxiv.org/abs/2405.15682).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

Tree = Any
WEIGHTS = ("trained", "ema")
_SCHEDULE_FREE_Z = "opt_state/z"


def parts_of(config: ml_collections.ConfigDict, weights: str) -> tuple[str, ...]:
    """Paths in the state of what `for_use` needs; each is a tree like the trained parameters.

    Args:
        config: the run's experiment config.
        weights: `trained`, the result of training, or `ema`.

    Raises:
        ValueError: the run keeps no such weights.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"--weights={weights} must be one of {', '.join(WEIGHTS)}")
    if weights == "ema":
        if not config.ema.decay:
            raise ValueError("--weights=ema: the run kept no average; it was trained with --config.ema.decay=0")
        return ("ema",)
    return ("trained", _SCHEDULE_FREE_Z) if config.optimizer.name == "schedule_free" else ("trained",)


def for_use(config: ml_collections.ConfigDict, parts: Mapping[str, Tree]) -> Tree:
    """The weights to evaluate, sample from and export, from the arrays that `parts_of` names."""
    if _SCHEDULE_FREE_Z not in parts:
        (weights,) = parts.values()
        return weights
    beta1 = jnp.float32(config.optimizer.betas[0])
    average = lambda y, z: ((y - (1 - beta1) * z) / beta1).astype(y.dtype)
    return jax.tree.map(average, parts["trained"], parts[_SCHEDULE_FREE_Z])
