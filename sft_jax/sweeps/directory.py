"""The directory of a sweep: `sweep.json` says which runs it has; each lies in a run directory of its own below it.

A second start of the same sweep adds the runs that are new and keeps the names of the others, so that nothing is
computed twice. Directories of another sweep, or of something else, are refused, and so are runs that were damaged by
hand, before anything starts.
"""

import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from sft_jax.config_files import ConfigError
from sft_jax.runs.metric_log import FILE as METRICS
from sft_jax.runs.metric_log import read_metrics
from sft_jax.runs.workdir import (
    DAMAGED,
    WorkdirError,
    check_config_there,
    config_there,
    differences,
    is_remote,
    is_unclaimed,
    only_one,
    write_whole,
)
from sft_jax.sweeps.files import parts_of
from sft_jax.sweeps.runs import Overrides, SweepRun, config_of, differing, fields_of, resolve, runs_of
from sft_jax.sweeps.settings import FILE
from sft_jax.sweeps.status import read_status

LAUNCHING = "launcher is at work"  # what there can be one of in a sweep's directory, for `only_one`
_KINDS = {"sweep": str, "config": str, "base": dict, "runs": list}


@dataclasses.dataclass(frozen=True)
class SweepDirectory:
    """A sweep and where it lies.

    Attributes:
        root: its directory.
        sweep: the sweep file, as it was given.
        config: the argument of `--config`.
        base: the config that all runs begin with, locked; its date is that of the sweep's first start.
        runs: all runs, those that an earlier start stated and this one does not included.
        search: what the search is, and null where there is none.
        stated: names of the runs that the sweep file states now.
    """

    root: epath.Path
    sweep: str
    config: str
    base: ConfigDict
    runs: list[SweepRun]
    search: dict[str, Any] | None = None
    stated: tuple[str, ...] = ()

    def run_dir(self, name: str) -> epath.Path:
        """The directory of a run."""
        return self.root / name

    @property
    def stated_runs(self) -> list[SweepRun]:
        """The runs that the sweep file states now, in its order."""
        by_name = {run.name: run for run in self.runs}
        return [by_name[name] for name in self.stated]

    def to_json(self) -> dict[str, Any]:
        """What `sweep.json` holds."""
        return {
            "sweep": self.sweep,
            "config": self.config,
            "base": fields_of(self.base),
            "fields": differing([(run.overrides, run.config) for run in self.runs]),
            "runs": [{"name": run.name, "overrides": run.overrides} for run in self.runs],
            "search": self.search,
        }

    def write(self) -> None:
        """Writes `sweep.json`, whole."""
        self.root.mkdir(parents=True, exist_ok=True)
        write_whole(self.root / FILE, json.dumps(self.to_json(), indent=2, default=list) + "\n")


def open_sweep(root: epath.PathLike) -> SweepDirectory:
    """The sweep that a directory holds.

    Raises:
        WorkdirError: it holds none, or its `sweep.json` is damaged; names what is wrong with it.
    """
    root = epath.Path(root)
    path = root / FILE
    if not path.exists():
        raise WorkdirError(f"{root} holds no sweep: there is no {FILE} in it")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise WorkdirError(f"{path} is not valid JSON ({error}); {DAMAGED}") from error
    wrong = [
        name for name, kind in _KINDS.items() if not isinstance(found, dict) or not isinstance(found.get(name), kind)
    ]
    if wrong:
        raise WorkdirError(f"{path}: no {', '.join(wrong)}, as the file of a sweep has; {DAMAGED}")
    try:
        base = config_of(found["base"])
    except (AttributeError, TypeError, ValueError) as error:
        raise WorkdirError(f"{path}: its base is not a config ({error}); {DAMAGED}") from error
    runs = [_run_there(path, base, entry) for entry in found["runs"]]
    return SweepDirectory(
        root, found["sweep"], found["config"], base, runs, found.get("search"), tuple(run.name for run in runs)
    )


def _run_there(path: epath.Path, base: ConfigDict, entry: Any) -> SweepRun:
    try:
        name, (overrides, config) = entry["name"], resolve(base, entry["overrides"])
    except (ConfigError, KeyError, TypeError, AttributeError) as error:
        raise WorkdirError(f"{path}: {json.dumps(entry)} is not a run of this sweep ({error}); {DAMAGED}") from error
    run = SweepRun(name, overrides, config)
    if not name.endswith(f"-{run.identity[:8]}"):
        raise WorkdirError(f"{path}: the overrides of run {name} are not those that it is named by; {DAMAGED}")
    return run


def plan_sweep(
    root: epath.PathLike,
    *,
    sweep: str,
    config: str,
    base: ConfigDict,
    stated: Sequence[Overrides],
    search: Mapping[str, Any] | None = None,
) -> SweepDirectory:
    """The sweep as it would be claimed; writes nothing.

    Args:
        root: its directory.
        sweep: the sweep file, as it was given.
        config: the argument of `--config`.
        base: the config of it, with what the command line sets.
        stated: what the sweep file gives.
        search: what the search is, where there is one.

    Raises:
        WorkdirError: the directory is of another sweep or of something else, or `sweep.json` or a run is damaged.
        SweepError: see `runs_of`.
    """
    root = epath.Path(root)
    there = open_sweep(root) if (root / FILE).exists() else None
    if there is None:
        _check_free(root)
    else:
        _check_same(there, sweep, base, search)
    base = _with_date(base, there)
    known = {run.identity: run.name for run in there.runs} if there else {}
    made = runs_of(base, stated, known)
    names = {run.name for run in made}
    earlier = [run for run in there.runs if run.name not in names] if there else []
    earlier = [SweepRun(run.name, *resolve(base, run.overrides)) for run in earlier]
    planned = SweepDirectory(
        root, sweep, config, base, [*earlier, *made], dict(search) if search else None, tuple(run.name for run in made)
    )
    check_runs(planned)
    return planned


def claim_sweep(root: epath.PathLike, **statement: Any) -> SweepDirectory:
    """Makes the directory this sweep's own, or adds to it the runs that are new.

    Args:
        root: its directory.
        statement: of `plan_sweep`.

    Raises:
        WorkdirError: see `plan_sweep`; or a launcher is at work there.
        SweepError: see `runs_of`.
    """
    planned = plan_sweep(root, **statement)
    planned.root.mkdir(parents=True, exist_ok=True)
    if is_remote(planned.root):
        planned.write()
        return planned
    with only_one(planned.root, LAUNCHING):  # whose runs would be forgotten if both wrote
        planned = plan_sweep(root, **statement)
        planned.write()
    return planned


def check_runs(sweep: SweepDirectory) -> None:
    """Checks that the run directories there are can be gone on with.

    Raises:
        WorkdirError: damaged ones, or directories in which there is another run; names them all.
    """
    problems = []
    for run in sweep.runs:
        directory = sweep.run_dir(run.name)
        try:
            check_config_there(directory, _as_started(run, directory))
            if read_status(directory).state != "finished" and (directory / METRICS).exists():
                _check_log(directory / METRICS)
        except WorkdirError as error:
            problems.append(str(error).split(" To train its result on:")[0])
    if problems:
        raise WorkdirError(
            "\n".join(problems) + "\nOr remove the directory of such a run, if its result is not needed: it is then "
            "computed anew."
        )


def _check_log(path: epath.Path) -> None:
    """Checks that a run can go on with its log.

    Raises:
        WorkdirError: a line of it is damaged.
    """
    try:
        read_metrics(path)
    except ValueError as error:
        raise WorkdirError(f"{error}; {DAMAGED}") from error


def _as_started(run: SweepRun, directory: epath.Path) -> ConfigDict:
    """The config of a run, with what an adapter to begin with brought in when it started."""
    there = config_there(directory) if run.config.adapter.initial else None
    if not there:
        return run.config
    config = run.config.copy_and_resolve_references().unlock()
    config.adapter.update(config_of(fields_of(ConfigDict(there.get("adapter", {})))))
    return config.lock()


def _check_free(root: epath.Path) -> None:
    if root.exists() and not root.is_dir():
        raise WorkdirError(f"{root} is a file: give a new --workdir")
    if root.exists() and any(not is_unclaimed(child) for child in root.iterdir()):
        raise WorkdirError(f"{root} is not empty and holds no {FILE}: give an empty or new --workdir")


def _check_same(there: SweepDirectory, sweep: str, base: ConfigDict, search: Mapping[str, Any] | None) -> None:
    """Checks that a directory is of this sweep.

    The file may lie in another checkout: of its path the last two parts are compared, and its argument.
    """
    found, wanted = fields_of(there.base), fields_of(base)
    if not wanted["data.date"]:
        wanted["data.date"] = found.get("data.date")
    differ = differences(found, wanted)
    if _stated_by(there.sweep) != _stated_by(sweep):
        differ = [f"the sweep file: {there.sweep!r} there, {sweep!r} asked for", *differ]
    found_search = json.dumps(there.search, sort_keys=True)
    if found_search != (asked := json.dumps(search, sort_keys=True, default=list)):
        differ = [*differ, f"the search: {found_search} there, {asked} asked for"]
    if differ:
        listed = "\n  ".join(differ)
        raise WorkdirError(
            f"{there.root} is the directory of another sweep:\n  {listed}\n"
            "Give another --workdir, or what that sweep was started with to go on with it."
        )


def _stated_by(sweep: str) -> tuple[tuple[str, ...], list[str]]:
    """What makes a sweep file the same one: the end of its path, and its argument."""
    path, given = parts_of(sweep)
    return Path(path).absolute().parts[-2:], given


def _with_date(base: ConfigDict, there: SweepDirectory | None) -> ConfigDict:
    """The base with the date that templates are told: that of the sweep's first start, for all of its runs."""
    if base.data.date:
        return base
    made = base.copy_and_resolve_references().unlock()
    made.data.date = there.base.data.date if there else datetime.date.today().isoformat()
    return made.lock()
