"""The stacked launcher: runs of a sweep in this process, as many as can be in one program together.

Groups are trained one after the other. Rows and the base are read once for all of them, and groups of one shape share
their program. A run that fits no other trains by itself.
"""

import signal
import time
import traceback
from collections.abc import Sequence

import jax
from rich.console import Console

from sft_jax import emulation
from sft_jax.options import options_of
from sft_jax.runs.result import INTERRUPTED, PAUSED, RunEnd, read_result, write_result
from sft_jax.runs.workdir import is_remote, only_one, with_date
from sft_jax.sweeps.directory import LAUNCHING, SweepDirectory
from sft_jax.sweeps.executing import AS_STATUS, LOG, error_text, execute, failed_end
from sft_jax.sweeps.hparams import not_failing, write_experiment, write_session
from sft_jax.sweeps.runs import SweepRun
from sft_jax.sweeps.shared import Shared
from sft_jax.sweeps.status import RunStatus, read_status, write_status
from sft_jax.training.stacked import groups_of, run_stacked

LARGEST = 8  # runs of a group, by default


def launch(
    sweep: SweepDirectory,
    todo: Sequence[SweepRun],
    *,
    largest: int = LARGEST,
    stop_after: int | None = None,
    console: Console | None = None,
) -> int:
    """Trains runs of a sweep that are not done yet; returns when none of them goes on.

    Args:
        sweep: with its directory, on a local file system.
        todo: the runs; those that are done are left alone.
        largest: so many runs train together at most.
        stop_after: the step after which each run pauses; None: all go on to their end.
        console: where it is shown; by default the terminal.

    Returns:
        the exit status: 0 where all are done, or paused; 1 where some have failed; 130 where a signal ended it.

    Raises:
        WorkdirError: another launcher is at work there, or a run's directory is damaged.
        ValueError: the directory is in a bucket.
    """
    if is_remote(sweep.root):
        raise ValueError(
            f"{sweep.root} is in a bucket; --launcher=stacked needs a --workdir on a file system with locks"
        )
    sweep.root.mkdir(parents=True, exist_ok=True)
    with only_one(sweep.root, LAUNCHING):
        return _Launch(sweep, console or Console(), stop_after).run(todo, largest)


class _Launch:
    """One launch, and what its groups share."""

    def __init__(self, sweep: SweepDirectory, console: Console, stop_after: int | None):
        self._sweep, self._console, self._stop_after = sweep, console, stop_after
        self._shared = Shared()
        emulation.reserve_threads()

    def run(self, todo: Sequence[SweepRun], largest: int) -> int:
        """Trains one group after the other; the exit status."""
        started, ends = time.monotonic(), {}
        left = [run for run in todo if read_status(self._sweep.run_dir(run.name)).state != "finished"]
        groups = groups_of(left, lambda run: run.config, largest)
        self._say(_plan_text(len(todo) - len(left), groups))
        for number, group in enumerate(groups, start=1):
            self._say(f"Group {number} of {len(groups)}: {', '.join(run.name for run in group)}")
            ends |= self._train(group)
            with not_failing(self._say):
                write_experiment(self._sweep.root)
            if any(end.state == INTERRUPTED for end in ends.values()):
                break
        self._show_end(ends, len(left), time.monotonic() - started)
        if any(end.state == INTERRUPTED for end in ends.values()):
            return 128 + signal.SIGINT
        return 0 if all(end.done or end.state == PAUSED for end in ends.values()) else 1

    def _train(self, group: Sequence[SweepRun]) -> dict[str, RunEnd]:
        """Trains a group in one program, or, where its rows say that it is none, each run by itself."""
        if len(group) == 1:
            return self._train_alone(group)
        statuses = [self._begun(run, group) for run in group]
        directories = [self._sweep.run_dir(run.name) for run in group]
        try:
            configs = [with_date(path, run.config) for path, run in zip(directories, group, strict=True)]
            options = [options_of(config) for config in configs]
            devices = jax.devices()
            ends = run_stacked(
                configs,
                directories,
                console=self._console,
                data=[self._shared.data(each, len(devices), self._console) for each in options],
                base=self._shared.base(options[0].model),
                devices=devices,
                stop_after=self._stop_after,
            )
        except ValueError as error:  # they are no one program, or one is refused: nothing is computed yet
            self._say(f"{error}\nThese runs train each by itself.")
            for run, status in zip(group, statuses, strict=True):
                write_status(self._sweep.run_dir(run.name), status.ended_as("waiting"))
            return self._train_alone(group)
        except Exception as error:  # noqa: BLE001  the next group shall have its turn
            self._say(
                f"{error_text(error)}\nThese runs failed together. Where memory is short, a smaller --stack helps."
            )
            ends = [self._failed(run, error) for run in group]
        except (KeyboardInterrupt, SystemExit):
            for run, status in zip(group, statuses, strict=True):
                self._ended(run, status.ended_as("interrupted"))
            raise
        for run, status, end in zip(group, statuses, ends, strict=True):
            self._ended(run, status.ended_as(AS_STATUS.get(end.state, "failed"), end.error))
        return {run.name: end for run, end in zip(group, ends, strict=True)}

    def _failed(self, run: SweepRun, error: Exception) -> RunEnd:
        """How a run ended whose group failed as a whole."""
        self._log(run, "".join(traceback.format_exception(error)).rstrip())
        directory = self._sweep.run_dir(run.name)
        end = read_result(directory)
        if end is None or end.error is None:
            end = failed_end(end, error_text(error))
            write_result(directory, end)
        return end

    def _train_alone(self, runs: Sequence[SweepRun]) -> dict[str, RunEnd]:
        ends: dict[str, RunEnd] = {}
        for run in runs:
            directory = self._sweep.run_dir(run.name)
            self._say(f"{run.name} trains by itself; what it says is in {directory / LOG}")
            ends[run.name] = execute(run, directory, self._shared, launcher="stacked", stop_after=self._stop_after)
            with not_failing(self._say):
                write_session(self._sweep.root, run.name)
            if ends[run.name].state == INTERRUPTED:
                break
        return ends

    def _begun(self, run: SweepRun, group: Sequence[SweepRun]) -> RunStatus:
        directory = self._sweep.run_dir(run.name)
        status = read_status(directory).begun("stacked")
        write_status(directory, status)
        others = ", ".join(other.name for other in group if other is not run)
        self._log(run, f"---- {run.name}: attempt {status.attempts}, {status.started}, in one program with {others}")
        return status

    def _ended(self, run: SweepRun, status: RunStatus) -> None:
        write_status(self._sweep.run_dir(run.name), status)
        self._log(run, f"{status.state}, {status.ended}" + (f": {status.error}" if status.error else ""))
        with not_failing(self._say):
            write_session(self._sweep.root, run.name)

    def _log(self, run: SweepRun, line: str) -> None:
        with (self._sweep.run_dir(run.name) / LOG).open("a") as file:
            file.write(line + "\n")

    def _show_end(self, ends: dict[str, RunEnd], total: int, seconds: float) -> None:
        done = sum(end.done for end in ends.values())
        self._say(f"{done} of {total} runs are done now, in {seconds:,.0f} s.")
        for name, end in ends.items():
            if not (end.done or end.state in (INTERRUPTED, PAUSED)):
                self._say(f"{name}: {end.state} at step {end.step}: {end.error}")
        if any(end.state == INTERRUPTED for end in ends.values()):
            self._say("Interrupted: what was in progress is saved. Start the same command again to go on.")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _plan_text(before: int, groups: Sequence[Sequence[SweepRun]]) -> str:
    """`5 runs in 2 programs, of 4, 1 runs; 3 were done before. …`"""
    sizes = [len(group) for group in groups]
    counted = lambda count, what: f"{count} {what}{'' if count == 1 else 's'}"
    text = f"{counted(sum(sizes), 'run')} in {counted(len(groups), 'program')}"
    text += f", of {', '.join(map(str, sizes))} runs" if len(sizes) > 1 else ""
    text += f"; {before} were done before." if before else "."
    if alone := [group[0].name for group in groups if len(group) == 1]:
        text += f" By themselves, since no other run that is left has the same program: {', '.join(alone)}."
    return text
