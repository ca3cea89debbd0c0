"""The best evaluation of a run so far, and early stopping: the end of a run that finds no better one any more.

What is known of earlier evaluations is what the run's log says of them, so that a run that goes on counts as one that
was never interrupted.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sft_jax.options import Options

SINCE_BEST = "progress/evaluations_since_best"


class BestEvaluation:
    """The best value of `checkpoint.best_metric`, and how many evaluations came after it.

    An evaluation is better by any amount; one that is not finite is not. The one before the first step counts.

    Attributes:
        step: at which the best was measured; None before any was.
        value: the best.
        since: evaluations after it.
    """

    def __init__(self, options: Options, history: Iterable[Mapping[str, Any]] = ()):
        """Starts with what the lines of the log say, in their order."""
        self._metric, self._sign = options.checkpoint.best_metric, 1 if options.checkpoint.best_is == "max" else -1
        self._patience = options.evaluation.patience
        self.step: int | None = None
        self.value, self.since = math.nan, 0
        for line in history:
            self.observe(line["step"], line)

    def observe(self, step: int, measured: Mapping[str, float | None]) -> None:
        """Takes note of an evaluation; what does not have the metric is none."""
        if self._metric not in measured:
            return
        value = measured[self._metric]
        finite = value is not None and math.isfinite(value)
        if finite and (self.step is None or self._sign * value > self._sign * self.value):
            self.step, self.value, self.since = step, float(value), 0
        else:
            self.since += 1

    def is_final(self) -> bool:
        """Whether the run ends here: `evaluation.patience` evaluations in a row were not better.

        All processes ask, and get the answer of process 0.
        """
        final = 0 < self._patience <= self.since
        if jax.process_count() == 1:
            return final
        return bool(multihost_utils.broadcast_one_to_all(np.int32(final)))

    def counted(self) -> dict[str, float]:
        """What is logged with an evaluation: `progress/evaluations_since_best`, where the run may end by it."""
        return {SINCE_BEST: float(self.since)} if self._patience else {}

    def text(self, total_steps: int) -> str:
        """`best held_out/nll 1.2345 at step 40 of 100`; empty where nothing was measured."""
        if self.step is None:
            return ""
        before = "" if self.step else ", before any training"
        return f"best {self._metric} {self.value:.4f} at step {self.step} of {total_steps}{before}"

    def reason(self, step: int, total_steps: int) -> str:
        """Why the run ended early, in a sentence."""
        return (
            f"Ended early, at step {step} of {total_steps}: {self.since} evaluations in a row without a better "
            f"{self._metric} (--config.evaluation.patience={self._patience})."
        )
