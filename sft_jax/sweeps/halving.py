"""Successive halving of the runs of a sweep: launches those of a rung, compares them, and launches the best again."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict
from rich.console import Console

from sft_jax.runs.result import read_result
from sft_jax.runs.workdir import DAMAGED, TASKS, WorkdirError
from sft_jax.sweeps.directory import SweepDirectory
from sft_jax.sweeps.problems import Problems, SweepError
from sft_jax.sweeps.runs import SweepRun, value_at
from sft_jax.sweeps.search import SuccessiveHalving
from sft_jax.sweeps.search_record import (
    FILE,
    GOES_ON,
    Launch,
    check_measured,
    finite,
    has_failed,
    is_measured_at,
    measured_at,
    read_record,
    refuse_unmeasured,
    write_record,
)
from sft_jax.sweeps.settings import SEED
from sft_jax.training.durations import parse

KIND = "rungs"


def check_halving(search: SuccessiveHalving, runs: Sequence[SweepRun]) -> int:
    """Checks that runs can be compared at the rungs of a search.

    Returns:
        The steps that each run has.

    Raises:
        SweepError: they cannot: of different lengths, in a unit that depends on the data, or not measured there.
    """
    problems, lengths = Problems(), {}
    for number, run in enumerate(runs, start=1):
        try:
            lengths[number] = _check_halved(search, run.config)
        except ValueError as error:
            problems.add(number, error)
    problems.refuse()
    if len(set(lengths.values())) > 1:
        raise SweepError(
            f"SuccessiveHalving: runs have {', '.join(map(str, sorted(set(lengths.values()))))} steps, and at a rung "
            "they would be at different shares of their schedules; give all one duration"
        )
    return lengths[1]


def _check_halved(search: SuccessiveHalving, config: ConfigDict) -> int:
    """The steps of a run that is to be compared with others on its way."""
    measures = "evaluation.every"
    if search.metric.startswith(TASKS) and config.evaluation.tasks_every:
        measures = "evaluation.tasks_every"
    steps = {}
    for path in ("duration", measures):
        amount, unit = parse(value_at(config, path), path)
        if unit != "steps":
            raise ValueError(
                f"SuccessiveHalving counts in steps: give --config.{path} in steps, as '600 steps', in place of "
                f"{value_at(config, path)!r}"
            )
        steps[path] = math.ceil(amount)
    every = steps[measures]
    if not every or search.first % every:
        raise ValueError(
            f"SuccessiveHalving(first={search.first}): runs are measured there only where it is a multiple of "
            f"--config.{measures}={value_at(config, measures)!r}"
        )
    if config.evaluation.patience:
        raise ValueError(
            f"--config.evaluation.patience={config.evaluation.patience}: SuccessiveHalving ends runs early itself; "
            "leave it at 0"
        )
    check_measured(search.metric, config)
    return steps["duration"]


def halve(search: SuccessiveHalving, sweep: SweepDirectory, launch: Launch, console: Console) -> int:
    """Runs successive halving, or goes on with it.

    Args:
        search: how.
        sweep: claimed, with all runs that begin.
        launch: runs some until they end, or until they have done so many steps (None: to their end); gives an exit
            status, not 0 where one failed or was interrupted.
        console: where decisions are shown.

    Returns:
        exit status: that of the launch after which some were neither measured nor failed, since it was ended or came
        back at once; at the end 1 where runs failed.

    Raises:
        SweepError: see `check_halving`; or runs were added since the first rung was decided, or do not measure what is
            decided by.
        WorkdirError: `search.json` is damaged.
    """
    rungs = search.rungs(check_halving(search, sweep.stated_runs))
    record = read_record(sweep.root, KIND)
    names = [run.name for run in sweep.stated_runs]
    by_name, failed = {run.name: run for run in sweep.runs}, False
    for number, step in enumerate(rungs):
        last = number == len(rungs) - 1
        if number < len(record):
            _check_recorded(sweep.root, record[number], step, names)
        else:
            todo = [by_name[name] for name in names if not _is_there(sweep, name, search.metric, step, last)]
            status = launch(sweep, todo, None if last else step) if todo else 0
            for name in names:
                refuse_unmeasured(search.metric, sweep.run_dir(name), step)
            measured = {name: measured_at(sweep.run_dir(name), search.metric, step) for name in names}
            if not all(_is_there(sweep, name, search.metric, step, last) or has_failed(sweep, name) for name in names):
                console.print(GOES_ON)
                return status
            promoted = [] if last else search.promoted(measured, _settings(by_name, names))
            record.append({"step": step, "metrics": {name: finite(value) for name, value in measured.items()}})
            record[-1]["promoted"] = promoted
            write_record(sweep.root, KIND, record)
        console.print(_rung_text(search, record[number], names, last), soft_wrap=True, highlight=False)
        failed = failed or any(value is None for value in record[number]["metrics"].values())
        names = record[number]["promoted"]
        if not names and not last:
            raise SweepError(f"{sweep.root}: no run was measured at step {step}; their log.txt say what went wrong")
    return int(failed)


def _settings(runs: Mapping[str, SweepRun], names: Sequence[str]) -> list[list[str]]:
    """Runs that differ in seed alone, together."""
    groups: dict[str, list[str]] = {}
    for name in names:
        setting = {field: value for field, value in runs[name].overrides.items() if field != SEED}
        groups.setdefault(json.dumps(setting, sort_keys=True, default=list), []).append(name)
    return list(groups.values())


def _is_there(sweep: SweepDirectory, name: str, metric: str, step: int, last: bool) -> bool:
    """Whether a run has come as far as the rung."""
    end = read_result(sweep.run_dir(name))
    if last:
        return end is not None and end.done
    return is_measured_at(sweep.run_dir(name), metric, step)


def _check_recorded(root: epath.Path, rung: Mapping[str, Any], step: int, names: Sequence[str]) -> None:
    """Checks that a rung that was decided is the one that is asked for.

    Raises:
        SweepError: runs were added or taken away since.
        WorkdirError: it is damaged.
    """
    if rung.get("step") != step or not {"metrics", "promoted"} <= rung.keys():
        raise WorkdirError(f"{root / FILE}: expected a decision at step {step}, found {json.dumps(rung)}; {DAMAGED}")
    if set(rung["metrics"]) != set(names):
        raise SweepError(
            f"{root}: the runs of the sweep are not those that were compared at step {step}: "
            f"{', '.join(sorted(set(rung['metrics']) ^ set(names)))}. A search that has begun takes no other runs; "
            "give another --workdir"
        )


def _rung_text(search: SuccessiveHalving, rung: Mapping[str, Any], names: Sequence[str], last: bool) -> str:
    values = {name: value for name, value in rung["metrics"].items() if value is not None}
    best = min(values, key=lambda name: search.badness(values[name]), default=None)
    text = f"Step {rung['step']}: {len(values)} of {len(names)} runs measured"
    text += f", best {search.metric} {values[best]:.4f} of {best}" if best else ""
    return text if last else f"{text}; {len(rung['promoted'])} go on."
