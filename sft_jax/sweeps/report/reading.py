"""Reads what a report is made of: the runs of a sweep, or of any directory of run directories."""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int64

from sft_jax.runs.metric_log import FILE as METRICS
from sft_jax.runs.metric_log import read_metrics
from sft_jax.runs.result import RunEnd, read_result
from sft_jax.runs.workdir import CONFIG, MAY_CHANGE, WorkdirError, config_there, flatten, is_under
from sft_jax.sweeps.settings import FILE as SWEEP
from sft_jax.sweeps.settings import SEED, read_stated
from sft_jax.sweeps.status import read_status

DONE = "finished"
FAILED = ("failed", "diverged", "damaged")
_BEST = ("checkpoint.best_metric", "checkpoint.best_is")
_DATE = "data.date"


@dataclasses.dataclass(frozen=True)
class Log:
    """What is kept of the lines of a run's log.

    Attributes:
        steps: of the lines.
        columns: the metrics that were asked for; NaN in a line that does not have it, or has no number.
        there: for each of them, in which lines it stands.
        names: of all metrics.
    """

    steps: Int64[np.ndarray, " lines"]
    columns: Mapping[str, Float[np.ndarray, " lines"]]
    there: Mapping[str, np.ndarray]
    names: frozenset[str]


@dataclasses.dataclass(frozen=True)
class SweptRun:
    """A run and how far it is.

    Attributes:
        name: of its directory.
        directory: its own.
        setting: what it has in each factor.
        seed: of its config.
        state: finished, running, waiting, paused, interrupted, failed, diverged, or damaged (in a file).
        error: why it failed.
        end: its result, if it has one.
        log: its metrics.
    """

    name: str
    directory: epath.Path
    setting: Mapping[str, Any]
    seed: int | None
    state: str
    error: str | None
    end: RunEnd | None
    log: Log


@dataclasses.dataclass(frozen=True)
class Runs:
    """The runs of a directory.

    Attributes:
        root: the directory.
        sweep: the sweep file, or what stands in its place.
        factors: fields that differ, but for the seed.
        runs: in the order of the sweep.
        best_metric: by which all of them choose their best checkpoint; empty where they do not agree.
        best_is: `min` or `max` of it.
    """

    root: epath.Path
    sweep: str
    factors: tuple[str, ...]
    runs: tuple[SweptRun, ...]
    best_metric: str
    best_is: str


def read_runs(root: epath.PathLike, wanted: Collection[str]) -> Runs:
    """Reads a sweep, also one that goes on, or a directory of run directories.

    Args:
        root: the directory.
        wanted: metrics to keep, of the log; that by which checkpoints are chosen is kept too.

    Raises:
        WorkdirError: there is no such directory, it holds no runs, or `sweep.json` is damaged. What is damaged in a run
            is the run's `error`.
    """
    root = epath.Path(root)
    if not root.is_dir():
        raise WorkdirError(f"{root} is not a directory; give that of a sweep, or one that holds run directories")
    sweep, factors, fields = _of_sweep(root) if (root / SWEEP).exists() else _of_directories(root)
    best = [{of_run.get(name) for of_run in fields.values()} for name in _BEST]
    best_metric, best_is = (str(next(iter(values))) if len(values) == 1 else "" for values in best)
    kept = {*wanted, best_metric} - {""}
    runs = [
        read_run(root / name, name, {factor: of_run.get(factor) for factor in factors}, of_run.get(SEED), kept)
        for name, of_run in fields.items()
    ]
    return Runs(root, sweep, factors, tuple(runs), best_metric, best_is)


Fields = Mapping[str, Mapping[str, Any]]  # run -> the fields of its config by path


def _of_sweep(root: epath.Path) -> tuple[str, tuple[str, ...], Fields]:
    stated = read_stated(root)
    return stated.sweep, stated.factors, {run: {**stated.base, **own} for run, own in stated.overrides.items()}


def _of_directories(root: epath.Path) -> tuple[str, tuple[str, ...], Fields]:
    """What differs between run directories that nobody stated; of two ways to compute the same, nothing does."""
    found = sorted(path.name for path in root.iterdir() if (path / CONFIG).exists())
    if not found:
        inside = (
            ": it is a run itself; give the directory that it lies in, or --compare" if (root / CONFIG).exists() else ""
        )
        raise WorkdirError(f"{root} holds no {SWEEP} and no run directories{inside}")
    fields = {name: flatten(config_there(root / name)) for name in found}
    names = dict.fromkeys(field for of_run in fields.values() for field in of_run)
    as_text = lambda field: {json.dumps(of_run.get(field)) for of_run in fields.values()}
    return (
        "run directories",
        tuple(field for field in names if not is_under(field, (*MAY_CHANGE, _DATE, SEED)) and len(as_text(field)) > 1),
        fields,
    )


def read_run(
    directory: epath.Path, name: str, setting: Mapping[str, Any], seed: int | None, wanted: Collection[str]
) -> SweptRun:
    """A run; what is damaged in it is its `error`."""
    end, log = None, _log_of([], wanted)
    try:
        end, status = read_result(directory), read_status(directory)
        log = read_log(directory, wanted)
        state, error = status.state, status.error
        if end is not None and not end.done and state not in ("running", "waiting"):
            state, error = end.state, end.error or error
    except (WorkdirError, ValueError) as damage:
        state, error = "damaged", str(damage)
    if state == "waiting" and len(log.steps):
        state = "interrupted"  # begun by hand, and not ended
    return SweptRun(name, directory, setting, seed, state, error, end, log)


def read_log(directory: epath.Path, wanted: Collection[str]) -> Log:
    """The log of a run, which may have none yet.

    Raises:
        ValueError: a line of it is damaged.
    """
    path = directory / METRICS
    return _log_of(read_metrics(path) if path.exists() else [], wanted)


def _log_of(lines: Sequence[Mapping[str, Any]], wanted: Collection[str]) -> Log:
    number = lambda value: np.nan if value is None else value
    return Log(
        np.array([line["step"] for line in lines], np.int64),
        {name: np.array([number(line.get(name)) for line in lines], np.float64) for name in wanted},
        {name: np.array([name in line for line in lines], bool) for name in wanted},
        frozenset().union(*lines) - {"step"},
    )
