"""Sweeps of real training on this machine: whatever breaks, the disk is readable, and a second start does the rest."""

import dataclasses
import fcntl
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath
from rich.console import Console

from benchmarks import sweep_launcher
from sft_jax.runs.metric_log import read_metrics
from sft_jax.runs.result import read_result
from sft_jax.runs.workdir import SESSION_END, WorkdirError, only_one
from sft_jax.sweeps.directory import claim_sweep
from sft_jax.sweeps.hparams import EXPERIMENT
from sft_jax.sweeps.launchers import local
from sft_jax.sweeps.launchers.local import launch
from sft_jax.sweeps.status import RunStatus, read_status, write_status
from tests import tiny

DRIVER = Path(__file__).with_name("launch_driver.py")
STEPS = 6
FINISHED = ("finished", 1)
RATES = (1e-2, 1e-3, 1e-4)


def claim(root, stated):
    """A sweep of the tiny model, and its runs by what they set."""
    base = tiny.config(root, **{"optimizer.max_skipped_in_a_row": 2, "duration": f"{STEPS} steps"})
    sweep = claim_sweep(root / "sweep", sweep="question/sweep.py", config="configs/sft.py", base=base, stated=stated)
    return sweep, [run.name for run in sweep.stated_runs]


def drive(sweep, workers=1, troubles=None):
    """Exit status and output of a launcher."""
    command = [sys.executable, str(DRIVER), str(sweep.root), str(workers), json.dumps(troubles or {})]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout + done.stderr


def states(sweep, names):
    """State and attempts of each run; fails where anything on disk cannot be read."""
    for name in names:
        read_result(sweep.run_dir(name))
        if (path := sweep.run_dir(name) / "metrics.jsonl").exists():
            read_metrics(path)
    found = [read_status(sweep.run_dir(name)) for name in names]
    return [(status.state, status.attempts) for status in found]


def steps_logged(sweep, name):
    return [line["step"] for line in read_metrics(sweep.run_dir(name) / "metrics.jsonl")]


def test_two_hundred_runs(tmp_path):
    """Each once, and each shown by TensorBoard; a second start finds nothing to do."""
    sweep = sweep_launcher.sweep_of(epath.Path(tmp_path / "sweep"), 200)
    names = [run.name for run in sweep.stated_runs]
    assert sweep_launcher.launched(sweep, workers=2) == 0
    assert states(sweep, names) == [FINISHED] * 200
    assert all((sweep.run_dir(name) / SESSION_END).exists() for name in names)
    assert (sweep.root / EXPERIMENT).exists()
    console = Console(file=io.StringIO(), width=200)
    assert launch(sweep, sweep.stated_runs, console=console, command=["no such program"]) == 0
    assert "200 of 200 runs are done (0 now, 200 before)" in console.file.getvalue()


def test_one_launcher_at_a_time(tmp_path):
    sweep = sweep_launcher.sweep_of(epath.Path(tmp_path / "sweep"), 2)
    with (
        only_one(sweep.root, "launcher is at work"),
        pytest.raises(WorkdirError, match=r"another launcher is at work in .*/sweep; wait for it"),
    ):
        launch(sweep, sweep.stated_runs)


def test_workers_of_an_earlier_launcher_are_waited_for(tmp_path, monkeypatch):
    """They save what they train, and leave, when their launcher is gone; another may come before they have."""
    sweep = sweep_launcher.sweep_of(epath.Path(tmp_path / "sweep"), 2)
    names = [run.name for run in sweep.stated_runs]
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as worker:
        status = dataclasses.replace(RunStatus().begun("local"), pid=worker.pid)
        write_status(sweep.run_dir(names[0]), status)

        def leaves(seconds):
            monkeypatch.undo()
            worker.communicate(b"\n")

        monkeypatch.setattr(local.time, "sleep", leaves)
        console = Console(file=io.StringIO(), width=200)
        command = [sys.executable, "-c", sweep_launcher.WORKER, str(sweep.root)]
        assert launch(sweep, sweep.stated_runs, console=console, command=command) == 0
    said = console.file.getvalue()
    assert f"Waiting for process {worker.pid}, which still has {names[0]}: it saves and leaves" in said
    assert "2 of 2 runs are done (2 now)" in said


def test_a_sweep_in_a_bucket_is_refused(tmp_path):
    sweep = sweep_launcher.sweep_of(epath.Path(tmp_path / "sweep"), 2)
    elsewhere = dataclasses.replace(sweep, root=epath.Path("gs://bucket/sweep"))
    with pytest.raises(ValueError, match=r"gs://bucket/sweep is in a bucket; --launcher=local needs a --workdir on"):
        launch(elsewhere, elsewhere.stated_runs)


def test_a_result_of_a_worker_that_died_counts(tmp_path):
    """It was killed between the result and its last word: the run is done, and has no second attempt."""
    sweep = sweep_launcher.sweep_of(epath.Path(tmp_path / "sweep"), 2)
    names = [run.name for run in sweep.stated_runs]
    dying = sweep_launcher.WORKER.replace('return "finished", None', "os.kill(os.getpid(), 9)")
    command = [sys.executable, "-c", dying, str(sweep.root)]
    console = Console(file=io.StringIO(), width=200)
    assert launch(sweep, sweep.stated_runs, retries=1, console=console, command=command) == 0
    assert states(sweep, names) == [FINISHED, FINISHED]
    assert "2 of 2 runs are done" in console.file.getvalue()


@pytest.mark.slow
def test_whatever_breaks_the_rest_is_done_once(tmp_path):
    """A worker killed, a full disk and a config that diverges; then a start without any of it."""
    rates = [{"optimizer.learning_rate": rate} for rate in (*RATES, 1e38, 1e-5)]
    sweep, names = claim(tmp_path, rates)
    fine, full, killed, diverges, last = names
    code, said = drive(sweep, troubles={killed: "kill worker", full: "full disk"})
    assert states(sweep, names) == [FINISHED, ("failed", 1), ("failed", 1), ("failed", 1), FINISHED]
    assert code == 1
    assert "2 of 5 runs are done" in said
    assert f"{killed}: failed: its worker was killed by SIGKILL" in said
    assert f"{full}: failed: " in said
    assert "File too large" in said
    assert f"{diverges}: diverged: DivergedError: 2 steps in a row" in said
    assert str(sweep.run_dir(diverges) / "log.txt") in said
    assert read_result(sweep.run_dir(diverges)).state == "diverged"
    written = lambda: [Path(sweep.run_dir(name) / "result.json").stat().st_mtime_ns for name in (fine, last)]
    before = written()

    code, said = drive(sweep)
    assert states(sweep, names) == [FINISHED, ("finished", 2), ("finished", 2), ("failed", 2), FINISHED]
    assert (code, "4 of 5 runs are done (2 now, 2 before)" in said) == (1, True)
    assert before == written()
    for name in (fine, full, killed, last):
        assert steps_logged(sweep, name) == list(range(STEPS + 1))
    assert "Continuing" in (sweep.run_dir(killed) / "log.txt").read_text()


@pytest.mark.slow
def test_a_launcher_that_is_killed(tmp_path):
    """Its worker saves the run and leaves; a second launcher goes on with it, and does what had no turn."""
    sweep, (fine, running, waiting) = claim(tmp_path, [{"optimizer.learning_rate": rate} for rate in RATES])
    code, _ = drive(sweep, troubles={running: "kill launcher"})
    assert code == -9
    with (sweep.run_dir(running) / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # free when nobody trains there
    assert states(sweep, (fine, waiting)) == [FINISHED, ("waiting", 0)]
    end = read_result(sweep.run_dir(running))
    assert (end.state, end.step) == ("interrupted", 4)  # the next one is on its way when a step is logged

    code, said = drive(sweep)
    assert code == 0, said
    assert states(sweep, (fine, running, waiting)) == [FINISHED, ("finished", 2), FINISHED]
    assert steps_logged(sweep, running) == list(range(STEPS + 1))
    assert "after step 4 of 6" in " ".join((sweep.run_dir(running) / "log.txt").read_text().split())
