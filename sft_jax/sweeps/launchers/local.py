"""The local launcher: runs of a sweep on this machine, by worker processes that divide its cores and devices.

Nothing that is done is lost, whoever is killed: a run writes its own checkpoints, result and status, and a second start
goes on with those that are not done. The launcher itself keeps nothing on disk.
"""

import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from sft_jax.runs.result import read_result
from sft_jax.runs.workdir import WorkdirError, is_remote, only_one
from sft_jax.sweeps.directory import LAUNCHING, SweepDirectory
from sft_jax.sweeps.executing import LOG
from sft_jax.sweeps.hparams import not_failing, write_experiment, write_session
from sft_jax.sweeps.launchers.following import Following
from sft_jax.sweeps.launchers.places import default_workers, places
from sft_jax.sweeps.launchers.pool import Outcome, Pool
from sft_jax.sweeps.runs import SweepRun
from sft_jax.sweeps.shared import default_keep_bytes
from sft_jax.sweeps.status import read_status, write_status

WORKERS_LOG = "workers.log"
_POLL_SECONDS = 0.5
_SUMMARY_SECONDS = 30.0  # between two of the whole sweep, for which all results are read


class _Watch:
    """Tells the display, the directory and TensorBoard what becomes of runs."""

    def __init__(self, sweep: SweepDirectory, following: Following):
        self._sweep, self._following = sweep, following
        self._summarized, self._is_behind, self._complained = time.monotonic(), False, False

    def started(self, name: str) -> None:
        self._following.started(name)

    def counted(self, name: str, total_steps: int) -> None:
        self._following.counted(name, total_steps)
        self._write(lambda: write_session(self._sweep.root, name))  # it is listed while it runs

    def lost(self, name: str, outcome: Outcome) -> Outcome:
        """What a worker that died left; a run that is at its end has a result that says so."""
        directory = self._sweep.run_dir(name)
        try:
            result = read_result(directory)
            if result is not None and result.done:
                write_status(directory, read_status(directory).ended_as("finished"))
                return Outcome(result.state)
            write_status(directory, read_status(directory).ended_as(outcome.state, outcome.error))
        except (OSError, WorkdirError) as error:
            return Outcome(outcome.state, f"{outcome.error}; and its status cannot be written: {error}")
        return outcome

    def ended(self, name: str, outcome: Outcome, again: bool) -> None:
        self._following.ended(name, outcome.state, outcome.error, again)
        self._write(lambda: write_session(self._sweep.root, name))
        self._is_behind = True

    def stopping(self, number: int) -> None:
        self._following.stopping("Saving what runs, and leaving. Ctrl-C again: leave at once.")

    def note(self, text: str) -> None:
        self._following.say(text)

    def tick(self) -> None:
        self._following.tick()
        if self._is_behind and time.monotonic() - self._summarized >= _SUMMARY_SECONDS:
            self.summarize()

    def summarize(self) -> None:
        """Writes what TensorBoard's HParams shows of all runs."""
        self._write(lambda: write_experiment(self._sweep.root))
        self._summarized, self._is_behind = time.monotonic(), False

    def _write(self, write: Callable[[], None]) -> None:
        """Writes for TensorBoard; where that fails, it is said once."""
        with not_failing(self._complain):
            write()

    def _complain(self, text: str) -> None:
        if not self._complained:
            self._following.say(text)
        self._complained = True


def launch(
    sweep: SweepDirectory,
    todo: Sequence[SweepRun],
    *,
    workers: int | None = None,
    retries: int = 0,
    stop_after: int | None = None,
    console: Console | None = None,
    command: Sequence[str] | None = None,
) -> int:
    """Executes runs of a sweep that are not done yet; returns when none of them goes on.

    Args:
        sweep: with its directory, on a local file system.
        todo: the runs; those that are done are left alone.
        workers: processes at a time; by default one for each GPU, elsewhere one.
        retries: further attempts of a run that fails, each from its latest checkpoint.
        stop_after: the step after which each run pauses; None: all go on to their end.
        console: where it is shown; by default the terminal.
        command: of a worker (`worker.py`); by default one that trains.

    Returns:
        the exit status: 0 where all are done, 1 where some have failed, 128 and the number of the signal that ended it.

    Raises:
        WorkdirError: another launcher is at work there, or a run's directory is damaged.
        WorkersError: no worker can be started.
        ValueError: the directory is in a bucket, or more workers than devices that cannot be shared.
    """
    if is_remote(sweep.root):
        raise ValueError(f"{sweep.root} is in a bucket; --launcher=local needs a --workdir on a file system with locks")
    console, root, started = console or Console(), Path(sweep.root), time.monotonic()
    where = places(default_workers() if workers is None else workers)
    root.mkdir(parents=True, exist_ok=True)
    with only_one(sweep.root, LAUNCHING):
        names = [run.name for run in todo if read_status(sweep.run_dir(run.name)).state != "finished"]
        before = len(todo) - len(names)
        _wait_for_others(sweep, names, console)
        with Following(root, names, before, min(len(where), max(1, len(names))), console) as following:
            watch = _Watch(sweep, following)
            command = _command(root, len(where), stop_after) if command is None else command
            pool = Pool(command, where, watch, root / WORKERS_LOG, retries)
            outcomes = pool.run(names)
            watch.summarize()
        _show_end(console, sweep, outcomes, before, time.monotonic() - started)
    if all(outcome.done for outcome in outcomes.values()):
        return 0
    return 1 if pool.stopped_by is None else 128 + pool.stopped_by


def _wait_for_others(sweep: SweepDirectory, names: Sequence[str], console: Console) -> None:
    """Waits until no process of this host has one of the runs: workers leave when their launcher is gone."""
    for name in names:
        said = False
        while (status := read_status(sweep.run_dir(name))).state == "running" and status.host == socket.gethostname():
            if not said:
                text = f"Waiting for process {status.pid}, which still has {name}: it saves and leaves"
                console.print(text, markup=False, highlight=False, soft_wrap=True)
                said = True
            time.sleep(_POLL_SECONDS)


def _command(root: Path, workers: int, stop_after: int | None) -> list[str]:
    arguments = [str(root), str(default_keep_bytes(workers)), "" if stop_after is None else str(stop_after)]
    return [sys.executable, "-m", "sft_jax.sweeps.launchers.worker", *arguments]


def _show_end(
    console: Console, sweep: SweepDirectory, outcomes: dict[str, Outcome], before: int, seconds: float
) -> None:
    """What became of the runs; those that failed with the last line of their error, and where their log is."""
    done = sum(outcome.done for outcome in outcomes.values())
    say = lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)
    earlier = f", {before} before" if before else ""
    say(f"{before + done} of {before + len(outcomes)} runs are done ({done} now{earlier}), in {seconds:,.0f} s.")
    for name, outcome in outcomes.items():
        if outcome.state in ("failed", "diverged"):
            why = (outcome.error or "").strip().splitlines()[-1:] or ["no reason is known"]
            say(f"{name}: {outcome.state}: {why[0]}\n  {sweep.run_dir(name) / LOG}")
    if left := sum(outcome.state in ("waiting", "interrupted") for outcome in outcomes.values()):
        say(f"{left} were interrupted or had no turn. Start the same command again to go on with them.")
