"""What a search has decided so far, and by which figures of its runs.

Decisions are in `search.json`, written whole after each. Killed anywhere, a second start goes on: what is decided stays
decided, and what was not is decided by the same figures.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from sft_jax.options import options_of
from sft_jax.runs.metric_log import FILE as METRICS
from sft_jax.runs.metric_log import read_metrics
from sft_jax.runs.result import read_result
from sft_jax.runs.workdir import DAMAGED, TASKS, WorkdirError, write_whole
from sft_jax.sweeps.directory import SweepDirectory
from sft_jax.sweeps.problems import SweepError
from sft_jax.sweeps.runs import SweepRun
from sft_jax.training.ending import evaluation_in
from sft_jax.training.gap import GAP
from sft_jax.training.held_out import names_by_objective

FILE = "search.json"
GOES_ON = "The search goes on with the same command."

Launch = Callable[[SweepDirectory, Sequence[SweepRun], int | None], int]


def read_record(root: epath.Path, kind: str) -> list[dict[str, Any]]:
    """What a search has decided, in order.

    Args:
        root: of the sweep.
        kind: "rungs" or "trials".

    Raises:
        WorkdirError: `search.json` is damaged.
    """
    path = root / FILE
    if not path.exists():
        return []
    try:
        record = json.loads(path.read_text())[kind]
        if not isinstance(record, list) or not all(isinstance(entry, dict) for entry in record):
            raise ValueError(f"its {kind} are no list")
    except (ValueError, KeyError, TypeError) as error:
        raise WorkdirError(f"{path} is damaged ({type(error).__name__}: {error}); {DAMAGED}") from error
    return record


def write_record(root: epath.Path, kind: str, record: Sequence[Mapping[str, Any]]) -> None:
    """Writes what is decided, whole."""
    write_whole(root / FILE, json.dumps({kind: record}, indent=2, default=list) + "\n")


def check_measured(metric: str, config: ConfigDict) -> None:
    """Checks that a run measures what a search decides by, as far as its config says.

    Raises:
        ValueError: it has no held-out rows, and the metric is of those; or there is no such metric, or no such task.
    """
    options = options_of(config)
    if metric.startswith(TASKS):
        task = metric.removeprefix(TASKS).partition("/")[0]
        if task not in options.evaluation.tasks:
            there = ", ".join(options.evaluation.tasks) or "none"
            raise ValueError(
                f"the search decides by {metric}, and there is no task {task!r} in the config; there are: {there}"
            )
        return
    known = names_by_objective(options.objective) | {GAP}
    if metric not in known and not metric.startswith("held_out/loss/"):
        raise ValueError(
            f"the search decides by {metric!r}, which evaluations do not measure; they measure "
            f"{', '.join(sorted(known))}, and {TASKS}<task>/<metric> of the tasks in the config"
        )
    if not config.data.held_out:
        raise ValueError(f"the search decides by {metric}, and there are no held-out rows: give --config.data.held_out")


def refuse_unmeasured(metric: str, directory: epath.Path, step: int) -> None:
    """Refuses a metric that a run did not measure though it came as far as a step.

    Raises:
        SweepError: names the metrics that it measured there.
    """
    end = read_result(directory)
    if end is None or end.state in ("failed", "diverged") or end.step < step or is_measured_at(directory, metric, step):
        return
    there = sorted({name for line in _lines_at(directory, step) for name in evaluation_in(line)})
    raise SweepError(
        f"{directory}: the search decides by {metric}, which was not measured at step {step}; there are "
        f"{', '.join(there) or 'no measurements'}. Name one of them in get_search(), and give another --workdir"
    )


def measured_at(directory: epath.Path, metric: str, step: int) -> float | None:
    """What a run measured at a step; None where it has not, or where that was no finite number."""
    values = [line[metric] for line in _lines_at(directory, step) if metric in line]
    return values[-1] if values else None


def is_measured_at(directory: epath.Path, metric: str, step: int) -> bool:
    """Whether a run has measured at a step, be it no finite number."""
    return any(metric in line for line in _lines_at(directory, step))


def _lines_at(directory: epath.Path, step: int) -> list[dict[str, Any]]:
    path = directory / METRICS
    return [line for line in read_metrics(path) if line["step"] == step] if path.exists() else []


def has_failed(sweep: SweepDirectory, name: str) -> bool:
    """Whether a run has ended, and not well."""
    end = read_result(sweep.run_dir(name))
    return end is not None and end.state in ("failed", "diverged")


def finite(value: float | None) -> float | None:
    """The value, or None where it is no finite number."""
    return value if value is not None and math.isfinite(value) else None
