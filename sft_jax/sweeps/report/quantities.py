"""What can be asked of the runs of a report: a metric of the log, or a score of an evaluation beside it.

A metric of the log has its name there, `held_out/loss`. A score of an evaluation is
`<directory>/<task>/<method>/<metric>`, of the `results.json` in that directory of each run.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from sft_jax.evaluation.metrics import higher_is_better
from sft_jax.evaluation.report.write import RESULTS
from sft_jax.evaluation.scorers import Outcome
from sft_jax.runs.workdir import EVALUATIONS, PREDICTIONS, TASKS
from sft_jax.sweeps.report.reading import DONE, Runs, SweptRun

TOKENS, SUPERVISED, STEP_SECONDS = "progress/tokens", "progress/supervised_tokens", "speed/seconds_per_step"
LOGGED = (TOKENS, SUPERVISED, STEP_SECONDS)  # what costs and axes are made of
USUAL = ("held_out/nll", "held_out/loss", "train/loss")
COSTS = ("tokens", "supervised_tokens", "seconds", "peak_memory_bytes", "trained_parameters")
_UNUSUAL = 10  # times the median
_LOWER, _HIGHER = ("loss", "nll", "perplexity", "gap"), ("accuracy",)


class QuantityError(ValueError):
    """What is asked for is not there."""


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A number of each run.

    Attributes:
        name: of the metric.
        at: `final`, `best`, or a step.
        better: True for the higher, False for the lower, None where neither is known to be.
        scores: of an evaluation, by run; None of what is in the log.
    """

    name: str
    at: str | int
    better: bool | None
    scores: Mapping[str, float] | None = None


@dataclasses.dataclass(frozen=True)
class Taken:
    """The value of a quantity in a run, at which step, and what it had cost up to there."""

    value: float
    step: int
    costs: Mapping[str, float]


def quantity_of(runs: Runs, name: str, at: str | int, better: bool | None, flag: str = "metric") -> Quantity:
    """What is asked for.

    Args:
        runs: whose logs have kept it.
        name: of the metric; empty: that by which checkpoints are chosen, or a usual loss.
        at: `final`, `best`, or a step.
        better: said by the user; None: what is known of the metric.
        flag: that names it, for errors.

    Raises:
        QuantityError: no run has it; names those there are. Or nothing has it at that step.
    """
    logged = frozenset().union(*(run.log.names for run in runs.runs))
    if not name:
        candidates = [runs.best_metric, *USUAL]
        name = next((candidate for candidate in candidates if candidate in logged), candidates[0] or USUAL[0])
    if better is None:
        better = _better(name, runs)
    if name in logged:
        quantity = Quantity(name, at, better)
        if isinstance(at, int):
            _check_step(runs, quantity)
        return quantity
    evaluated = {run.name: _scores(run.directory) for run in runs.runs}
    if not any(name in scores for scores in evaluated.values()):
        there = [*sorted(logged), *sorted(frozenset().union(*evaluated.values()))]
        listed = f"there are {', '.join(there)}" if there else "no run has logged anything yet"
        raise QuantityError(f"--{flag}={name} is in no run of {runs.root}; {listed}")
    if at != "final":
        raise QuantityError(f"--at={at}: {name} is of an evaluation, which has one value a run; leave out --at")
    return Quantity(name, at, better, {run: scores[name] for run, scores in evaluated.items() if name in scores})


def take(run: SweptRun, quantity: Quantity) -> Taken | None:
    """The value of a run; None where it has none: it is not at its end, or was not measured there."""
    if quantity.scores is not None:
        value = quantity.scores.get(run.name)
        return None if value is None or run.end is None else Taken(value, run.end.step, costs_at(run, run.end.step))
    place = _place(run, quantity)
    if place is None:
        return None
    value, step = float(run.log.columns[quantity.name][place]), int(run.log.steps[place])
    return Taken(value, step, costs_at(run, step)) if math.isfinite(value) else None


def seconds_of(run: SweptRun) -> np.ndarray:
    """Seconds of training up to each line of the log; steps that were not logged took as long as the next one.

    A step that took ten times as long as the median did something else too: programs are compiled in the first step of
    a process, which has nothing to do with the run. It counts as the median.
    """
    each = run.log.columns[STEP_SECONDS]
    measured = each[np.isfinite(each)]
    usual = float(np.median(measured)) if len(measured) else 0.0
    each = np.where(each > _UNUSUAL * usual, usual, np.nan_to_num(each))
    return np.cumsum(each * np.diff(run.log.steps, prepend=0))


def costs_at(run: SweptRun, step: int) -> dict[str, float]:
    """What a run had cost up to a step, as far as it is recorded."""
    upto = run.log.steps <= step
    if not upto.any():
        return {}
    last = int(np.flatnonzero(upto)[-1])
    found = {"seconds": float(seconds_of(run)[last])} if run.log.there[STEP_SECONDS][: last + 1].any() else {}
    for cost, name in (("tokens", TOKENS), ("supervised_tokens", SUPERVISED)):
        if run.log.there[name][: last + 1].any():
            found[cost] = float(np.nanmax(run.log.columns[name][: last + 1]))
    if run.end is not None and run.end.peak_memory_bytes is not None:
        found["peak_memory_bytes"] = float(run.end.peak_memory_bytes)
    if run.end is not None and "trained_parameters" in run.end.counters:
        found["trained_parameters"] = float(run.end.counters["trained_parameters"])
    return {cost: found[cost] for cost in COSTS if cost in found}


def rows_of(run: SweptRun, quantity: Quantity, step: int) -> dict[str, Outcome] | None:
    """Outcome of each row by its id, of a score that rows have; None of other quantities, and where none are kept."""
    if quantity.scores is None:
        prefix, _, rest = quantity.name.partition("/")
        task = rest.rpartition("/")[0]
        path = run.directory / EVALUATIONS / str(step) / f"{task}.json"
        if f"{prefix}/" != TASKS or not path.exists():
            return None
        kept = json.loads(path.read_text())
        return {line["id"]: outcome for line, outcome in zip(kept["lines"], kept["outcomes"], strict=True)}
    folder, task, method, _ = quantity.name.split("/")
    path = run.directory / folder / PREDICTIONS / task / f"{method}.jsonl"
    if not path.exists():
        return None
    lines = [json.loads(line) for line in path.read_text().rstrip("\n").split("\n")]
    return {line["id"]: line["outcome"] for line in lines}


def metric_of_rows(quantity: Quantity) -> str:
    """The name of the metric of a task, as scorers know it."""
    return quantity.name.rpartition("/")[2]


def _place(run: SweptRun, quantity: Quantity) -> int | None:
    """The line of the log that is asked for."""
    lines = np.flatnonzero(run.log.there[quantity.name])
    if quantity.at == "final":
        return int(lines[-1]) if run.state == DONE and len(lines) else None
    if quantity.at == "best":
        if run.state != DONE or run.end is None or run.end.best is None:
            return None
        step = run.end.best["step"]
    else:
        step = quantity.at
    there = lines[run.log.steps[lines] == step]
    return int(there[-1]) if len(there) else None


def _check_step(runs: Runs, quantity: Quantity) -> None:
    steps = {int(step) for run in runs.runs for step in run.log.steps[run.log.there[quantity.name]]}
    if quantity.at not in steps:
        near = sorted(sorted(steps, key=lambda step: abs(step - quantity.at))[:5])
        raise QuantityError(
            f"--at=step {quantity.at}: no run has {quantity.name} there; near it, at steps {', '.join(map(str, near))}"
        )


def _better(name: str, runs: Runs) -> bool | None:
    if name == runs.best_metric and runs.best_is:
        return runs.best_is == "max"
    parts = name.split("/")
    if name.startswith(TASKS) or (len(parts) == 4 and parts[0] not in ("train", "held_out")):
        return higher_is_better(parts[-1])
    if parts[0] in ("train", "held_out") and len(parts) > 1:
        return False if parts[1] in _LOWER else True if parts[1] in _HIGHER else None
    return None


def _scores(directory: epath.Path) -> dict[str, float]:
    """All scores of the evaluations in a run directory."""
    found: dict[str, float] = {}
    for path in sorted(directory.glob(f"*/{RESULTS}")):
        try:
            results = json.loads(path.read_text())
            for task, described in {**results["tasks"], **(results["forgetting"] or {})}.items():
                for method, metric, value in _values(described["scores"]):
                    found[f"{path.parent.name}/{task}/{method}/{metric}"] = float(value)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise QuantityError(f"{path} holds no results of an evaluation ({error!r}); evaluate again") from error
    return found


def _values(scores: Mapping[str, Mapping[str, Any]]) -> Iterable[tuple[str, str, float]]:
    return [(method, metric, one["value"]) for method, of in scores.items() for metric, one in of.items()]
