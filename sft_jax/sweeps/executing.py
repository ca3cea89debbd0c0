"""Executes one run of a sweep in this process, and says how it ended instead of raising."""

import contextlib
import dataclasses
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from etils import epath
from rich.console import Console

from sft_jax import emulation
from sft_jax.failures import message_of
from sft_jax.options import options_of
from sft_jax.runs.result import RunEnd, read_result, write_result
from sft_jax.runs.workdir import RESULT, with_date
from sft_jax.sweeps.runs import SweepRun
from sft_jax.sweeps.shared import Shared
from sft_jax.sweeps.status import Launcher, read_status, write_status
from sft_jax.training import run as train

LOG = "log.txt"
_AS_STATUS = {"finished": "finished", "stopped_early": "finished", "interrupted": "interrupted"}  # others have failed


def execute(
    run: SweepRun,
    directory: epath.PathLike,
    shared: Shared,
    *,
    devices: Sequence[jax.Device] | None = None,
    launcher: Launcher = "local",
) -> RunEnd:
    """Trains one run of a sweep, or goes on with it; writes `status.json`, `log.txt` and `result.json`.

    A run that fails is one that ended so, and no error: its traceback is in the log, its message in the result.

    Args:
        run: with its config.
        directory: of the run.
        shared: what this process keeps between runs.
        devices: to train on; by default all.
        launcher: on whose behalf, for the status.

    Raises:
        KeyboardInterrupt: a signal ended it outside of the loop of training; so does SystemExit.
    """
    directory = epath.Path(directory)
    error = None
    try:
        status = read_status(directory).begun(launcher)
        write_status(directory, status)
        _forget_unfinished(directory)
    except Exception as caught:  # noqa: BLE001  a directory that cannot be used is a run that failed
        return _failed(None, _text(caught))
    try:
        with _output_in(directory / LOG, f"{run.name}: attempt {status.attempts}, {status.started}"):
            error = _train(run, directory, shared, devices)
    except Exception as caught:  # noqa: BLE001  the log cannot be written
        error = error or _text(caught)
    except (KeyboardInterrupt, SystemExit):
        write_status(directory, status.ended_as("interrupted"))
        raise
    try:
        end = _end(directory, error)
        write_status(directory, status.ended_as(_AS_STATUS.get(end.state, "failed"), end.error))
    except Exception as caught:  # noqa: BLE001  whoever asked learns it, though the directory cannot
        return _failed(None, error or _text(caught))
    return end


def _train(run: SweepRun, directory: epath.Path, shared: Shared, devices: Sequence[jax.Device] | None) -> str | None:
    """Trains; returns why it failed, if it did, after writing it to the log."""
    try:
        emulation.reserve_threads()
        devices = jax.devices() if devices is None else devices
        config = with_date(directory, run.config)  # data are read for this day
        options = options_of(config)
        base = shared.base(options.model)
        data = shared.data(options, len(devices), Console())
        train(config, directory, data=data, base=base, devices=devices)
    except Exception as error:  # noqa: BLE001  the next run shall have its turn
        traceback.print_exc()
        return _text(error)
    return None


def _forget_unfinished(directory: epath.Path) -> None:
    """Removes the result of an attempt that did not come to its end: a new one begins."""
    result = read_result(directory)
    if result is not None and not result.done:
        (directory / RESULT).unlink()


def _end(directory: epath.Path, error: str | None) -> RunEnd:
    """How it ended, as its result says; of what failed before training could write one, one is written here."""
    end = read_result(directory)
    if end is None or (error is not None and end.error is None):
        end = _failed(end, error or "the training wrote no result")
        write_result(directory, end)
    return end


def _failed(end: RunEnd | None, error: str) -> RunEnd:
    if end is not None:
        return dataclasses.replace(end, state="failed", error=error)
    return RunEnd("failed", 0, 0, {}, None, {}, 0.0, None, error)


def _text(error: Exception) -> str:
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
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        finally:
            _flush()
            for number, kept in before:
                os.dup2(kept, number)
                os.close(kept)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
