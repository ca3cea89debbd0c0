"""`result.json` in a run directory: how the run ended, and with which figures.

Training writes it at every end, failures included. A directory without one holds a run that was never ended in order:
it is going on, or its process was killed.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from etils import epath

from sft_jax.runs.workdir import WorkdirError, write_whole

FILE = "result.json"
FINISHED, STOPPED_EARLY, PAUSED, INTERRUPTED, DIVERGED, FAILED = (
    "finished",
    "stopped_early",
    "paused",
    "interrupted",
    "diverged",
    "failed",
)
STATES = (FINISHED, STOPPED_EARLY, PAUSED, INTERRUPTED, DIVERGED, FAILED)


@dataclasses.dataclass(frozen=True)
class RunEnd:
    """How a run ended.

    Attributes:
        state: one of `STATES`.
        step: optimizer steps done, as the log has them; after a failure the run goes on from its last checkpoint.
        total_steps: steps that it has in all.
        metrics: the last evaluation and the last figures of training, by their names in `metrics.jsonl`.
        best: {"step", "metric", "metrics"} of the evaluation at which `checkpoint.best_metric` was best; None where
            it was not measured.
        counters: of the plan up to `step`: examples, tokens, supervised_tokens, and epochs where data come in some.
        seconds: of the steps, without evaluating, saving and compiling.
        peak_memory_bytes: of the device of this process that needed the most; None where it does not say, as CPUs.
        error: what went wrong; None where nothing did.
    """

    state: str
    step: int
    total_steps: int
    metrics: Mapping[str, float]
    best: Mapping[str, Any] | None
    counters: Mapping[str, float]
    seconds: float
    peak_memory_bytes: int | None
    error: str | None

    @property
    def done(self) -> bool:
        """Whether there is nothing left to train."""
        return self.state in (FINISHED, STOPPED_EARLY)


def write_result(workdir: epath.PathLike, end: RunEnd) -> None:
    """Writes `result.json`, whole. Figures that are not finite are null in it, which JSON can hold."""
    text = json.dumps(_finite(dataclasses.asdict(end)), indent=2)
    write_whole(epath.Path(workdir) / FILE, text + "\n")


def read_result(workdir: epath.PathLike) -> RunEnd | None:
    """How the run in a directory ended; None where it says nothing.

    Raises:
        WorkdirError: the file is damaged.
    """
    path = epath.Path(workdir) / FILE
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        end = RunEnd(**found)
        measured = [end.metrics, end.counters, *([] if end.best is None else [end.best["metrics"]])]
        if end.state not in STATES or not all(isinstance(values, dict) for values in measured):
            raise ValueError(f"state {end.state!r}")
    except (ValueError, TypeError, KeyError) as error:
        raise WorkdirError(
            f"{path} is damaged ({error}). Remove it, and start the same run again: one that is at its end writes it "
            "anew, any other goes on from its checkpoint."
        ) from error
    best = None if end.best is None else {**end.best, "metrics": _with_nan(end.best["metrics"])}
    return dataclasses.replace(end, metrics=_with_nan(end.metrics), best=best)


def forget_result(workdir: epath.PathLike) -> None:
    """Removes what an earlier end left: the run goes on."""
    (epath.Path(workdir) / FILE).unlink(missing_ok=True)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in values.items()}
