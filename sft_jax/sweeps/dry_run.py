"""What `--dry_run` shows: the runs by what differs, what is done and left, memory, and time by earlier runs."""

import dataclasses
import statistics
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sft_jax.evaluation.report.tables import duration_text
from sft_jax.runs.metric_log import FILE, read_metrics
from sft_jax.sweeps.directory import SweepDirectory
from sft_jax.sweeps.halving import check_halving
from sft_jax.sweeps.preparing import PreparedRun
from sft_jax.sweeps.problems import runs_text
from sft_jax.sweeps.runs import SweepRun, differing, value_at
from sft_jax.sweeps.search import Optuna, Search, SuccessiveHalving
from sft_jax.sweeps.status import read_status
from sft_jax.training.memory import StepProgram

_SECONDS = "speed/seconds_per_step"
_PIPED = 1000  # columns where nobody sees the width


@dataclasses.dataclass(frozen=True)
class RunLog:
    """What the log of a run says of its time.

    Attributes:
        step: the last one that was logged.
        seconds: of the steps that were logged, without those of compiling.
    """

    step: int
    seconds: list[float]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Time that is left, as far as earlier runs tell.

    Attributes:
        seconds: of the steps that are left in runs with an earlier one that has their program.
        measured: runs by which it is estimated.
        unknown: numbers of runs with steps left, of whose program there was none, from 1.
    """

    seconds: float
    measured: int
    unknown: list[int]


def runs_table(sweep: SweepDirectory) -> Table:
    """The runs that are stated: number, what differs, state, name."""
    runs = sweep.stated_runs
    fields = differing([(run.overrides, run.config) for run in runs])
    table = Table("", *fields, "state", "directory", box=box.SIMPLE)
    for number, run in enumerate(runs, start=1):
        values = [Text(_text(value_at(run.config, field))) for field in fields]
        table.add_row(str(number), *values, read_status(sweep.run_dir(run.name)).state, Text(run.name))
    return table


def _text(value: object) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def states_text(sweep: SweepDirectory, runs: Sequence[SweepRun]) -> str:
    """`12 runs: 4 finished, 1 failed, 7 waiting`."""
    states = [read_status(sweep.run_dir(run.name)).state for run in runs]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return f"{len(runs)} run{'s' if len(runs) != 1 else ''}: {counted}"


def log_of(sweep: SweepDirectory, run: SweepRun) -> RunLog:
    """What the log of a run says of its time; of one that has none, nothing."""
    path = sweep.run_dir(run.name) / FILE
    lines = read_metrics(path) if path.exists() else []
    seconds = [line[_SECONDS] for line in lines if line.get(_SECONDS)]
    return RunLog(lines[-1]["step"] if lines else 0, seconds[1:])


def estimate(prepared: Sequence[PreparedRun], logs: Sequence[RunLog]) -> Estimate:
    """The time that is left, one run after the other: of each program the median second of the steps that were logged.

    Args:
        prepared: the runs.
        logs: of each.
    """
    seconds: dict[StepProgram, list[float]] = {}
    for made, log in zip(prepared, logs, strict=True):
        seconds.setdefault(made.program, []).extend(log.seconds)
    left, unknown = 0.0, []
    for number, (made, log) in enumerate(zip(prepared, logs, strict=True), start=1):
        steps = max(0, made.total_steps - log.step)
        if steps and not seconds[made.program]:
            unknown.append(number)
        elif steps:
            left += steps * statistics.median(seconds[made.program])
    return Estimate(left, sum(bool(log.seconds) for log in logs), unknown)


def time_text(found: Estimate) -> str:
    """An estimate in words."""
    if not found.measured:
        return "Time: no earlier runs in this directory to estimate it from."
    measured = f"the steps of {found.measured} run{'s' if found.measured > 1 else ''} in this directory"
    text = (
        f"Time: about {duration_text(found.seconds)} of steps left, one run after the other, by {measured}; "
        "evaluating, saving and compiling come on top."
    )
    if found.unknown:
        text += f" Not counted: {runs_text(found.unknown)}, whose program has not run before."
    return text


def memory_lines(prepared: Sequence[PreparedRun]) -> list[str]:
    """What the step of each program needs of a device; compiles each once."""
    groups: dict[StepProgram, list[int]] = {}
    for number, made in enumerate(prepared, start=1):
        groups.setdefault(made.program, []).append(number)
    device = prepared[0].program.mesh.devices.flat[0]
    count = prepared[0].program.mesh.size
    where = f"{count} x {device.device_kind}" if count > 1 else device.device_kind
    each = " of each device" if count > 1 else ""
    lines = [f"Memory of a step{each}, as compiled for {where}: {len(groups)} program{'s' if len(groups) > 1 else ''}"]
    for program, numbers in groups.items():
        lines.append(f"  {program.memory() / 2**20:,.1f} MiB: {runs_text(numbers)}")
    return lines


def show_costs(sweep: SweepDirectory, prepared: Sequence[PreparedRun], console: Console) -> None:
    """Prints time and memory; memory last, since it takes the longest.

    Args:
        sweep: as it would be claimed.
        prepared: the runs that it states.
        console: of the terminal.
    """
    runs = sweep.stated_runs
    console.print(time_text(estimate(prepared, [log_of(sweep, run) for run in runs])), soft_wrap=True)
    for line in memory_lines(prepared):
        console.print(line, soft_wrap=True, highlight=False)


def show_runs(sweep: SweepDirectory, console: Console) -> None:
    """Prints the runs, how many there are, and what is done of them."""
    runs = sweep.stated_runs
    wide = Console(file=console.file, width=_PIPED, highlight=False) if not console.is_terminal else console
    wide.print(runs_table(sweep))
    console.print(states_text(sweep, runs), highlight=False)
    others = [run for run in sweep.runs if run.name not in sweep.stated]
    if others:
        text = f"Also here, from an earlier start and no longer in the sweep file: {states_text(sweep, others)}."
        console.print(f"{text} They stay.", soft_wrap=True, highlight=False)


def show_search(search: Search, sweep: SweepDirectory, console: Console) -> None:
    """Prints how runs are chosen, and what that means for how many there are."""
    say = lambda text: console.print(text, soft_wrap=True, highlight=False, markup=False)
    better = "less" if search.mode == "min" else "more"
    if isinstance(search, SuccessiveHalving):
        rungs = search.rungs(check_halving(search, sweep.stated_runs))
        steps = ", ".join(map(str, rungs[:-1]))
        say(
            f"Successive halving by {search.metric}, {better} is better. At steps {steps} the best 1/{search.eta} of "
            f"the settings go on, to step {rungs[-1]}. The time below is that of all of them."
        )
    elif isinstance(search, Optuna):
        say(
            f"Optuna by {search.metric}, {better} is better: {search.trials} trials, {search.at_once} at a time, each "
            "run as above. Shown is the middle of the space:"
        )
        for field, distribution in search.space.items():
            say(f"  {field}: {distribution}")
