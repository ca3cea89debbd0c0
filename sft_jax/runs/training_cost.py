"""What a finished run cost: tokens, time, and how many parameters it changed."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from etils import epath

from sft_jax.models.config import DecoderConfig
from sft_jax.options import WeightOptions
from sft_jax.runs.base import FinishedRun
from sft_jax.runs.freezing import weight_shapes
from sft_jax.runs.metric_log import FILE, read_metrics


def training_cost(run: FinishedRun) -> dict[str, Any]:
    """{"tokens", "supervised_tokens", "seconds", "steps", "parameters_changed", "parameters"} up to the checkpoint.

    Seconds are those of the steps, without evaluating and saving; where not every step was logged, those that were
    stand for the others.

    Args:
        run: of which all are told; those of runs that it started from are not counted.
    """
    return cost_up_to(run.directory, run.step, run.options, run.base.decoder)


def cost_up_to(directory: epath.Path, step: int, options: WeightOptions, decoder: DecoderConfig) -> dict[str, Any]:
    """The same of a run that may not be finished, from its log up to a step."""
    lines = [line for line in read_metrics(directory / FILE) if line["step"] <= step]
    counted = [line for line in lines if "progress/tokens" in line]
    last = counted[-1] if counted else {}
    changed, frozen = weight_shapes(options, decoder, "unrolled")
    return {
        "tokens": int(last.get("progress/tokens", 0)),
        "supervised_tokens": int(last.get("progress/supervised_tokens", 0)),
        "seconds": seconds_of_steps(lines, step),
        "steps": step,
        "parameters_changed": _count(changed),
        "parameters": _count([tree.get("params", {}) for tree in (changed, frozen)]),
    }


def seconds_of_steps(lines: Iterable[Mapping[str, Any]], step: int) -> float:
    """Seconds of the steps up to `step`; those that were logged stand for the others.

    Args:
        lines: of the log, up to that step.
        step: steps done.
    """
    steps = [line["speed/seconds_per_step"] for line in lines if "speed/seconds_per_step" in line]
    return sum(steps) / max(len(steps), 1) * step


def trained_parameters(options: WeightOptions, decoder: DecoderConfig) -> int:
    """How many numbers the optimizer changes."""
    return _count(weight_shapes(options, decoder, "unrolled")[0])


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
