"""How a run ended: what `run` returns, what `result.json` says, and what is shown."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from rich.console import Console

from sft_jax.data.plan import PackPlan
from sft_jax.runs import result
from sft_jax.runs import workdir as workdirs
from sft_jax.runs.metric_log import FILE, read_metrics
from sft_jax.runs.result import RunEnd
from sft_jax.runs.training_cost import seconds_of_steps
from sft_jax.training.best import BestEvaluation
from sft_jax.training.recorder import STEP_METRICS, DivergedError, counters_at

_TRAINING = "train/"
Line = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        step: optimizer steps done.
        total_steps: steps that the run has in all.
        metrics: the latest evaluation, `held_out/…` and what evaluators gave.
        interrupted: the signal that ended it early; None if it came to its end.
        stopped_early: whether `evaluation.patience` made an earlier step its end.
        best_step: at which `checkpoint.best_metric` was best, 0 for before the first; None where it was not measured.
        paused: whether it was left where `stop_after` says.
    """

    step: int
    total_steps: int
    metrics: dict[str, float]
    interrupted: int | None = None
    stopped_early: bool = False
    best_step: int | None = None
    paused: bool = False

    @property
    def state(self) -> str:
        """The same in the words of `result.json`."""
        if self.paused:
            return result.PAUSED
        if self.interrupted is not None:
            return result.INTERRUPTED
        return result.STOPPED_EARLY if self.stopped_early else result.FINISHED


def state_after(error: BaseException) -> str:
    """What an error makes of a run, in the words of `result.json`."""
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return result.INTERRUPTED
    return result.DIVERGED if isinstance(error, DivergedError) else result.FAILED


def end_of_run(
    state: str,
    step: int,
    total_steps: int,
    *,
    plan: PackPlan,
    best: tuple[int | None, str],
    lines: Iterable[Line],
    devices: Sequence[jax.Device],
    error: BaseException | None = None,
) -> RunEnd:
    """What `result.json` says of a run.

    Args:
        state: how it ended, of `result.STATES`.
        step: optimizer steps done.
        total_steps: of the run.
        plan: its pack plan.
        best: the step of the best evaluation, if there is one, and by which metric.
        lines: its log.
        devices: of the run.
        error: what ended it, if something did.
    """
    lines = [line for line in lines if line["step"] <= step]
    best_step, metric = best
    there = [line for line in lines if line["step"] == best_step and metric in line]
    training = next((line for line in reversed(lines) if any(name.startswith(_TRAINING) for name in line)), {})
    return RunEnd(
        state=state,
        step=step,
        total_steps=total_steps,
        metrics=last_evaluation(lines) | _numbers(training, lambda name: name.startswith(_TRAINING)),
        best={"step": best_step, "metric": metric, "metrics": evaluation_in(there[0])} if there else None,
        counters=counters_at(plan, step),
        seconds=seconds_of_steps(lines, step),
        peak_memory_bytes=_peak_memory(devices),
        error=None if error is None else f"{type(error).__name__}: {error}",
    )


def log_of(workdir: epath.Path, last: int | None = None) -> list[Line]:
    """The lines of a run's log up to a step; none where there is no log."""
    path = workdir / FILE
    lines = read_metrics(path) if path.exists() else []
    return [line for line in lines if last is None or line["step"] <= last]


def last_evaluation(lines: Sequence[Line]) -> dict[str, float]:
    """What the last of these lines with an evaluation says of it."""
    found = (evaluation_in(line) for line in reversed(lines))
    return next((figures for figures in found if figures), {})


def evaluation_in(line: Line) -> dict[str, float]:
    """What a line of the log says beside the training step's own figures."""
    return _numbers(line, lambda name: "/" in name and not name.startswith(STEP_METRICS))


def _numbers(line: Line, wanted: Any) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in line.items() if wanted(name)}


def _peak_memory(devices: Sequence[jax.Device]) -> int | None:
    here = [device for device in devices if device.process_index == jax.process_index()]
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in here]
    return max((peak for peak in peaks if peak is not None), default=None)


def show_end(console: Console, step: int, total_steps: int, best: BestEvaluation) -> None:
    """Says why it ended, if early, and which evaluation was best."""
    if step < total_steps:
        console.print(best.reason(step, total_steps), soft_wrap=True, highlight=False)
    if text := best.text(total_steps):
        console.print(text, soft_wrap=True, highlight=False)


def show_finished(
    console: Console, workdir: epath.Path, config: Mapping, step: int, total_steps: int, best: BestEvaluation
) -> None:
    """Says that nothing is left to do, and what could be done."""
    if step < total_steps:
        console.print(f"{workdir} holds the finished run.", soft_wrap=True)
    else:
        console.print(f"{workdir} holds the finished run: all {step} steps are done.")
    show_end(console, step, total_steps, best)
    if step < total_steps:
        more = "To go on with it all the same: a larger --config.evaluation.patience, or 0."
        console.print(more, soft_wrap=True, highlight=False)
    console.print(workdirs.more_training(workdir, config).strip(), soft_wrap=True)
