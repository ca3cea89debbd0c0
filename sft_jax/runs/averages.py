"""Which weights of a run are evaluated and exported: those trained, or an average of them over the steps.

An exponential moving average (EMA) is kept beside the trained weights where `config.ema.decay` asks for one. The
schedule-free rule trains at y and is evaluated at x, the average that it does not store: x = (y - (1 - beta1) z) /
beta1 with z from its state (Defazio et al. 2024, https://arxiv.org/abs/2405.15682).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from sft_jax.options import EmaOptions, OptimizerOptions

Tree = Any
WEIGHTS = ("trained", "ema")
_SCHEDULE_FREE_Z = "opt_state/z"


def parts_of(optimizer: OptimizerOptions, ema: EmaOptions, weights: str) -> tuple[str, ...]:
    """Paths in the state of what `for_use` needs; each is a tree like the trained parameters.

    Args:
        optimizer: of the run.
        ema: of the run.
        weights: `trained`, the result of training, or `ema`.

    Raises:
        ValueError: the run keeps no such weights.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"--weights={weights} must be one of {', '.join(WEIGHTS)}")
    if weights == "ema":
        if not ema.decay:
            raise ValueError("--weights=ema: the run kept no average; it was trained with --config.ema.decay=0")
        return ("ema",)
    return ("trained", _SCHEDULE_FREE_Z) if optimizer.name == "schedule_free" else ("trained",)


def for_use(parts: Mapping[str, Tree], beta1: float | Float32[Array, ""]) -> Tree:
    """The weights to evaluate, sample from and export, from the arrays that `parts_of` names.

    Args:
        parts: the arrays by path in the state.
        beta1: of the optimizer; the average of a schedule-free run is computed with it.
    """
    if _SCHEDULE_FREE_Z not in parts:
        (weights,) = parts.values()
        return weights
    beta1 = jnp.asarray(beta1, jnp.float32)
    average = lambda y, z: ((y - (1 - beta1) * z) / beta1).astype(y.dtype)
    return jax.tree.map(average, parts["trained"], parts[_SCHEDULE_FREE_Z])
