"""Workers that take runs one after the other: whatever becomes of them, each run ends once, and the others go on."""

import collections
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sft_jax.sweeps.launchers.places import Place
from sft_jax.sweeps.launchers.pool import Outcome, Pool, WorkersError
from tests.sweeps.launchers.pool_driver import Told, stub

DRIVER = Path(__file__).with_name("pool_driver.py")


def execute(root, names, workers=2, retries=0, *, broken=False):
    """How the runs ended, and what the pool told."""
    told = Told()
    command = stub(root, *(["broken"] if broken else []))
    pool = Pool(command, [Place() for _ in range(workers)], told, root / "workers.log", retries)
    return pool.run(names), told.events


def attempts(root):
    """How often each run was begun."""
    path = root / "attempts.txt"
    return collections.Counter(line.split()[0] for line in path.read_text().splitlines()) if path.exists() else {}


def workers_used(root):
    return {line.split()[1] for line in (root / "attempts.txt").read_text().splitlines()}


def test_two_hundred_runs_end_once_each(tmp_path):
    names = [f"ok-{number}" for number in range(200)]
    outcomes, events = execute(tmp_path, names, workers=3)
    assert outcomes == dict.fromkeys(names, Outcome("finished"))
    assert attempts(tmp_path) == dict.fromkeys(names, 1)
    assert len(workers_used(tmp_path)) <= 3
    assert [name for what, name, *_ in events if what == "started"] == names


def test_a_run_that_fails_does_not_stop_the_others(tmp_path):
    outcomes, _ = execute(tmp_path, ["ok-1", "fail-1", "diverge-1", "ok-2", "ok-3"])
    assert {name: outcome.state for name, outcome in outcomes.items()} == {
        "ok-1": "finished",
        "fail-1": "failed",
        "diverge-1": "diverged",
        "ok-2": "finished",
        "ok-3": "finished",
    }
    assert outcomes["fail-1"].error == "ValueError: as it was told to"


def test_retries(tmp_path):
    """What failed is tried again at the end, so often; what diverged would diverge again."""
    outcomes, events = execute(tmp_path, ["fail-1", "diverge-1", "kill=3-1", "ok-1"], workers=1, retries=2)
    assert {name: outcome.state for name, outcome in outcomes.items()} == {
        "fail-1": "failed",
        "diverge-1": "diverged",
        "kill=3-1": "finished",
        "ok-1": "finished",
    }
    assert attempts(tmp_path) == {"fail-1": 3, "diverge-1": 1, "kill=3-1": 3, "ok-1": 1}
    assert [again for what, name, *rest in events if what == "ended" and name == "fail-1" for again in rest[1:]] == [
        True,
        True,
        False,
    ]


def test_a_worker_that_is_killed(tmp_path):
    """Its run has failed, with the reason; others take its place, and do the rest."""
    names = ["kill-1", "ok-1", "ok-2", "kill-2", "ok-3"]
    outcomes, events = execute(tmp_path, names)
    assert outcomes["kill-1"].state == outcomes["kill-2"].state == "failed"
    assert "its worker was killed by SIGKILL; if the machine was out of memory" in outcomes["kill-1"].error
    assert all(outcomes[name].done for name in ("ok-1", "ok-2", "ok-3"))
    assert attempts(tmp_path) == dict.fromkeys(names, 1)
    assert {name for what, name, *_ in events if what == "lost"} == {"kill-1", "kill-2"}


def test_workers_that_cannot_start(tmp_path):
    (tmp_path / "workers.log").write_text("of an earlier start")
    with pytest.raises(WorkersError, match=r"before they are ready.*\nthis machine has no such device") as error:
        execute(tmp_path, ["ok-1", "ok-2"], broken=True)
    assert "earlier" not in str(error.value)
    assert attempts(tmp_path) == {}


def drive(root, workers, *names):
    command = [sys.executable, str(DRIVER), str(root), str(workers), *names]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def wait_for(process, words, count):
    """Reads what the launcher says until it has said it so often."""
    while count:
        line = process.stdout.readline()
        assert line, f"it ended before it said {words!r}"
        count -= line.startswith(words)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_in_good_order(number, tmp_path):
    """What runs is saved, what waits is not begun; a second start does what is left."""
    launcher = drive(tmp_path, 2, "ok-1", "hang-1", "hang-2", "ok-2")
    wait_for(launcher, "counted hang", 2)
    launcher.send_signal(number)
    *_, last = launcher.communicate()[0].splitlines()
    assert launcher.returncode == number
    assert json.loads(last) == {
        "ok-1": "finished",
        "hang-1": "interrupted",
        "hang-2": "interrupted",
        "ok-2": "waiting",
    }
    assert attempts(tmp_path) == {"ok-1": 1, "hang-1": 1, "hang-2": 1}


def test_a_second_interrupt_kills(tmp_path):
    launcher = drive(tmp_path, 1, "deaf-1")
    wait_for(launcher, "counted deaf", 1)
    launcher.send_signal(signal.SIGINT)
    wait_for(launcher, "stopping", 1)
    launcher.send_signal(signal.SIGINT)
    *_, last = launcher.communicate()[0].splitlines()
    assert (launcher.returncode, json.loads(last)) == (signal.SIGINT, {"deaf-1": "interrupted"})


def test_workers_of_a_launcher_that_is_killed_leave(tmp_path):
    """The lock of a run is free when its worker has ended it: this test waits for nothing else."""
    launcher = drive(tmp_path, 2, "hang-1", "hang-2", "ok-1")
    wait_for(launcher, "counted hang", 2)
    launcher.kill()
    launcher.communicate()
    for name in ("hang-1", "hang-2"):
        with (tmp_path / f"{name}.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
    assert attempts(tmp_path) == {"hang-1": 1, "hang-2": 1}
