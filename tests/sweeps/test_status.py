"""How far a run is, as its directory says it."""

import json
import os
import socket
import subprocess
import sys

import pytest

from sft_jax.runs.result import RunEnd, write_result
from sft_jax.runs.workdir import WorkdirError
from sft_jax.sweeps.status import RunStatus, read_status, write_status


def end(state):
    return RunEnd(state, 3, 6, {}, None, {}, 1.0, None, None)


def a_dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_from_waiting_to_finished(tmp_path):
    assert read_status(tmp_path / "run") == RunStatus("waiting", 0)
    status = RunStatus().begun("slurm")
    write_status(tmp_path / "run", status)
    assert read_status(tmp_path / "run") == status
    assert (status.state, status.attempts, status.pid, status.launcher) == ("running", 1, os.getpid(), "slurm")
    write_status(tmp_path / "run", status.ended_as("failed", "no space"))
    found = read_status(tmp_path / "run")
    assert (found.state, found.error, found.attempts) == ("failed", "no space", 1)
    assert found.started <= found.ended
    assert found.begun("local").attempts == 2


@pytest.mark.parametrize(
    ("written", "state", "read"),
    [
        ("running", "finished", "finished"),  # its process was killed after the result, before the status
        ("failed", "stopped_early", "finished"),
        ("finished", "interrupted", "interrupted"),
        ("finished", None, "interrupted"),
        ("failed", "diverged", "failed"),
        ("waiting", None, "waiting"),
    ],
)
def test_the_result_says_what_is_done(written, state, read, tmp_path):
    write_status(tmp_path, RunStatus(written, 1))
    if state is not None:
        write_result(tmp_path, end(state))
    assert read_status(tmp_path).state == read


@pytest.mark.parametrize(
    ("changes", "read"),
    [
        ({}, "running"),
        ({"pid": a_dead_pid()}, "interrupted"),
        ({"pid": a_dead_pid(), "host": "elsewhere"}, "running"),  # nobody knows from here
        ({"started": "2001-01-01T00:00:00+00:00"}, "interrupted"),  # this process is younger: it has the number now
        ({"pid": None}, "interrupted"),
    ],
)
def test_running_in_a_process_that_is_gone(changes, read, tmp_path):
    status = RunStatus().begun("local")
    assert status.host == socket.gethostname()
    write_status(tmp_path, RunStatus(**{**vars(status), **changes}))
    assert read_status(tmp_path).state == read


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected an object with attempts, ended, error"),
        ({"state": "happy"}, "state is 'happy'"),
        ({"attempts": -1}, "attempts is -1"),
        ({"pid": "7"}, "pid is '7'"),
        ({"started": "yesterday"}, "started is 'yesterday'"),
        ({"launcher": None}, "launcher is None"),
    ],
)
def test_damaged(damage, said, tmp_path):
    write_status(tmp_path, RunStatus("failed", 1))
    path = tmp_path / "status.json"
    path.write_text(damage if isinstance(damage, str) else json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(WorkdirError, match=r"status\.json is damaged: .*Remove it") as error:
        read_status(tmp_path)
    assert said in str(error.value)
