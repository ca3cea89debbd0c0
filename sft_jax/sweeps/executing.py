"""Executes one run of a sweep in this process, and says how it ended instead of raising."""

import contextlib
import dataclasses
import functools
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
from etils import epath
from rich.console import Console

from sft_jax import emulation
from sft_jax.agreement import OtherProcessError, agreed
from sft_jax.failures import message_of
from sft_jax.options import options_of
from sft_jax.runs.result import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    PAUSED,
    STOPPED_EARLY,
    RunEnd,
    forget_result,
    read_result,
    write_result,
)
from sft_jax.runs.workdir import is_remote, with_date
from sft_jax.sweeps.runs import SweepRun
from sft_jax.sweeps.shared import Shared
from sft_jax.sweeps.status import Launcher, read_status, write_status
from sft_jax.training import RunResult
from sft_jax.training import run as train
from sft_jax.training.durations import run_steps

LOG = "log.txt"
_LOG_WIDTH = 140  # characters
# What is a failure for a status has a name here of its own, or none.
AS_STATUS = {FINISHED: "finished", STOPPED_EARLY: "finished", INTERRUPTED: "interrupted", PAUSED: "paused"}
OnStart = Callable[[int], object]


def execute(
    run: SweepRun,
    directory: epath.PathLike,
    shared: Shared,
    *,
    devices: Sequence[jax.Device] | None = None,
    launcher: Launcher = "local",
    stop_after: int | None = None,
    on_start: OnStart = lambda total_steps: None,
) -> RunEnd:
    """Trains one run of a sweep, or goes on with it; writes `status.json`, `log.txt` and `result.json`.

    A run that fails is one that ended so, and no error: its traceback is in the log, its message in the result. Of
    several processes of a run, the first one writes.

    Args:
        run: with its config.
        directory: of the run.
        shared: what this process keeps between runs.
        devices: to train on; by default all.
        launcher: on whose behalf, for the status.
        stop_after: the step after which it pauses; None: it goes on to its end.
        on_start: called with the steps that it has in all, before the first.

    Raises:
        KeyboardInterrupt: a signal ended it outside of the loop of training; so does SystemExit.
    """
    directory = epath.Path(directory)
    train_it = functools.partial(_train, run, directory, shared, devices, stop_after, on_start)
    if jax.process_index() > 0:
        return _assist(train_it)
    status = error = None
    try:
        with contextlib.ExitStack() as log:
            with agreed():
                status = read_status(directory).begun(launcher)
                write_status(directory, status)
                _forget_unfinished(directory)
                title = f"{run.name}: attempt {status.attempts}, {status.started}"
                if not is_remote(directory):  # files there cannot grow
                    log.enter_context(_output_in(directory / LOG, title))
            error, _ = train_it()
    except Exception as caught:  # noqa: BLE001  a directory that cannot be used is a run that failed
        error = error or error_text(caught)
        if status is None:
            return failed_end(None, error)
    except (KeyboardInterrupt, SystemExit):
        if status is not None:
            write_status(directory, status.ended_as("interrupted"))
        raise
    try:
        end = _end(directory, error)
        write_status(directory, status.ended_as(AS_STATUS.get(end.state, "failed"), end.error))
    except Exception as caught:  # noqa: BLE001  whoever asked learns it, though the directory cannot
        return failed_end(None, error or error_text(caught))
    return end


def _assist(train_it: Callable[[], tuple[str | None, RunResult | None]]) -> RunEnd:
    """Takes part in a run of which another process writes what becomes of it."""
    try:
        with agreed():
            pass
    except OtherProcessError as error:
        return failed_end(None, str(error))
    error, result = train_it()
    if result is None:
        return failed_end(None, error)
    return RunEnd(result.state, result.step, result.total_steps, result.metrics, None, {}, 0.0, None, None)


def _train(
    run: SweepRun,
    directory: epath.Path,
    shared: Shared,
    devices: Sequence[jax.Device] | None,
    stop_after: int | None,
    on_start: OnStart,
) -> tuple[str | None, RunResult | None]:
    """Trains; why it failed, which is in the log too, or how it ended."""
    try:
        emulation.reserve_threads()
        devices = jax.devices() if devices is None else devices
        console = Console(width=_LOG_WIDTH, quiet=jax.process_index() > 0)
        config = with_date(directory, run.config)  # data are read for this day
        with agreed():
            options = options_of(config)
            base = shared.base(options.model)
            data = shared.data(options, len(devices), console)
        on_start(run_steps(options.duration, data.plan))
        return None, train(
            config, directory, console=console, data=data, base=base, devices=devices, stop_after=stop_after
        )
    except Exception as error:  # noqa: BLE001  the next run shall have its turn
        traceback.print_exc()
        return error_text(error), None


def _forget_unfinished(directory: epath.Path) -> None:
    """Removes the result of an attempt that did not come to its end: a new one begins."""
    result = read_result(directory)
    if result is not None and not result.done:
        forget_result(directory)


def _end(directory: epath.Path, error: str | None) -> RunEnd:
    """How it ended, as its result says; of what failed before training could write one, one is written here."""
    end = read_result(directory)
    if end is None or (error is not None and end.error is None):
        end = failed_end(end, error or "the training wrote no result")
        write_result(directory, end)
    return end


def failed_end(end: RunEnd | None, error: str) -> RunEnd:
    """How a run ended that failed; `end` is what its result says, if it has one."""
    if end is not None:
        return dataclasses.replace(end, state=FAILED, error=error)
    return RunEnd(FAILED, 0, 0, {}, None, {}, 0.0, None, error)


def error_text(error: Exception) -> str:
    """What is said of it; of a fault in the code, what Python says last of it."""
    return message_of(error) or traceback.format_exception_only(error)[-1].strip()


@contextlib.contextmanager
def _output_in(path: epath.Path, title: str) -> Iterator[None]:
    """Appends to a file what is written to standard output and error, by libraries in C too."""
    with Path(path).open("a", buffering=1) as file:
        print(f"---- {title}", file=file)
        before = [(number, os.dup(number)) for number in (1, 2)]
        _flush()
        for number, _ in before:
            os.dup2(file.fileno(), number)
        try:
            # By their numbers: a handler of logging that is made in here outlives the file.
            out, err = (open(number, "w", buffering=1, closefd=False) for number, _ in before)  # noqa: SIM115
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    yield
                finally:
                    _flush()
        finally:
            _flush()
            for number, kept in before:
                os.dup2(kept, number)
                os.close(kept)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
