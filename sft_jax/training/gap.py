"""The gap between held-out and training loss, at each evaluation: what grows when a run learns its rows by heart."""

from collections.abc import Iterable, Mapping
from typing import Any

GAP, LOSS_WEIGHT = "held_out/gap", "train/loss_weight"
_HELD_OUT, _TRAIN, _SKIPPED = "held_out/loss", "train/loss", "train/skipped"


class Gap:
    """Held-out loss less the training loss since the last evaluation.

    The training loss is the mean over the supervised tokens of all steps that are logged (`log.every`), skipped ones
    left out. It is that of training: with dropout and noise, of the weights as they were at each step. All is taken
    from lines of the log, so that a run that goes on measures what one does that was never interrupted.

    Worked example: steps with losses 2 and 1 over 10 and 30 supervised tokens have the mean (20 + 30) / 40 = 1.25; a
    held-out loss of 1.5 is a gap of 0.25.
    """

    def __init__(self, history: Iterable[Mapping[str, Any]] = ()):
        """Starts after the lines of `history`."""
        self._total = self._weight = 0.0
        for line in history:
            self.add(line)

    def add(self, line: Mapping[str, Any]) -> None:
        """Takes note of a line of the log; one with an evaluation is the last of its stretch."""
        self._total, self._weight = self._with(line)
        if _HELD_OUT in line:
            self._total = self._weight = 0.0

    def at(self, line: Mapping[str, Any], evaluation: Mapping[str, float]) -> dict[str, float]:
        """`held_out/gap` at an evaluation after the step of `line`; empty where one of the two losses is missing."""
        total, weight = self._with(line)
        return {GAP: evaluation[_HELD_OUT] - total / weight} if weight and _HELD_OUT in evaluation else {}

    def _with(self, line: Mapping[str, Any]) -> tuple[float, float]:
        if line.get(_SKIPPED) or LOSS_WEIGHT not in line:
            return self._total, self._weight
        weight = line[LOSS_WEIGHT]
        return self._total + line[_TRAIN] * weight, self._weight + weight
