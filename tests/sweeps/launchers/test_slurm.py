"""On a real SLURM, which is started here: jobs finish, go on where they were ended, and are submitted once."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from sft_jax.runs.metric_log import read_metrics
from sft_jax.runs.result import read_result
from sft_jax.sweeps.directory import claim_sweep, open_sweep
from sft_jax.sweeps.launchers import slurm
from sft_jax.sweeps.launchers.slurm import SlurmOptions, launch
from sft_jax.sweeps.launchers.slurm_queue import jobs_of, read_submissions
from sft_jax.sweeps.status import read_status
from sft_jax.training import run
from tests import tiny
from tests.sweeps import slurm_cluster
from tests.sweeps.launchers.long_run import OVERRIDES, STEPS, steps, until

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
OPTIONS = SlurmOptions(minutes=30, cpus=1, mem="1500M", warning_seconds=30)


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # of jobs
        patch.setenv("JAX_PLATFORMS", "cpu")
        try:
            started = slurm_cluster.running()
            logs = started.__enter__()
        except slurm_cluster.CannotStart as error:
            pytest.skip(f"no SLURM: {error}")
        try:
            yield logs
        finally:
            started.__exit__(None, None, None)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("slurm")
    tiny.config(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(root / "compilations"))
        yield root


@pytest.fixture
def sweep_of(cluster, inputs, tmp_path, monkeypatch):
    """A sweep of runs with these learning rates."""
    monkeypatch.setattr(slurm, "_POLL_SECONDS", 0.5)

    def sweep_of(*rates, **overrides):
        config = tiny.config(inputs, **overrides)
        stated = [{"optimizer.learning_rate": rate} for rate in rates]
        return claim_sweep(tmp_path / "sweep", sweep="x/sweep.py", config="configs/sft.py", base=config, stated=stated)

    yield sweep_of
    if (tmp_path / "sweep").exists():
        submitted = read_submissions(tmp_path / "sweep")
        subprocess.run(["scancel", "--quiet", *(each.job for each in submitted)])
        until(lambda: not jobs_of(submitted), tmp_path / "sweep")


def start(sweep, todo=None, options=OPTIONS):
    """The exit status of a start, and what it said."""
    console = Console(file=io.StringIO(), width=200)
    status = launch(sweep, sweep.runs if todo is None else todo, options, console)
    return status, console.file.getvalue()


def queue(sweep):
    return jobs_of(read_submissions(Path(sweep.root)))


def trains_on(sweep, name, beyond):
    """Waits until steps after this one are logged."""
    until(lambda: any(step > beyond for step in steps(sweep.run_dir(name))), Path(sweep.root))


def signal_to(name, sweep, signal):
    subprocess.run(["scancel", f"--signal={signal}", queue(sweep)[name].id], check=True)


def went_on_after(sweep, name, step):
    """Checks that a run continued from the checkpoint of a step, with no step left out or taken twice in its log."""
    log = (Path(sweep.run_dir(name)) / "log.txt").read_text()
    assert f"after step {step} of {STEPS}" in " ".join(log.split())
    logged = steps(sweep.run_dir(name))
    assert logged == sorted(set(logged))


def figures(directory):
    """The losses of a run, by step and name."""
    names = ("held_out/nll", "train/loss")
    lines = read_metrics(directory / "metrics.jsonl")
    return {(line["step"], name): line[name] for line in lines for name in names if name in line}


def test_an_array_of_runs_finishes_and_nothing_is_submitted_twice(sweep_of):
    sweep = sweep_of(1e-3, 2e-3, 3e-3, duration="4 steps")
    status, said = start(sweep, options=SlurmOptions(**vars(OPTIONS) | {"array_parallelism": 2}))
    assert status == 0
    assert "Submitted 3 runs as job" in said
    (submission,) = read_submissions(Path(sweep.root))
    assert submission.runs == tuple(run.name for run in sweep.runs)
    status, said = start(sweep)  # they wait or run
    assert status == 0
    assert "Submitted" not in said
    assert all(f"job {submission.job}_{i}" in said for i in range(3))

    status, said = start(sweep, options=SlurmOptions(**vars(OPTIONS) | {"wait": True}))
    assert status == 0
    assert "Submitted" not in said
    for each in sweep.runs:
        assert f"{each.name}: finished at step 4" in said
        end, status = read_result(sweep.run_dir(each.name)), read_status(sweep.run_dir(each.name))
        assert (end.state, end.step) == ("finished", 4)
        assert (status.state, status.attempts, status.launcher) == ("finished", 1, "slurm")
    assert start(sweep)[0] == 0
    assert read_submissions(Path(sweep.root)) == [submission]


def test_a_cancelled_run_is_saved_and_the_next_start_goes_on_with_it(sweep_of):
    sweep = sweep_of(1e-5, **OVERRIDES)
    (name,) = (run.name for run in sweep.runs)
    start(sweep)
    trains_on(sweep, name, 0)
    subprocess.run(["scancel", read_submissions(Path(sweep.root))[0].job], check=True)
    until(lambda: not queue(sweep), Path(sweep.root))
    end = read_result(sweep.run_dir(name))
    assert end.state == "interrupted"
    assert read_status(sweep.run_dir(name)).state == "interrupted"

    assert "Submitted 1 run as job" in start(open_sweep(sweep.root))[1]
    assert len(read_submissions(Path(sweep.root))) == 2
    trains_on(sweep, name, end.step)
    went_on_after(sweep, name, end.step)
    assert read_status(sweep.run_dir(name)).attempts == 2


def test_usr2_saves_the_run_and_the_same_job_goes_on_later(sweep_of):
    sweep = sweep_of(1e-5, **OVERRIDES)
    (name,) = (run.name for run in sweep.runs)
    start(sweep)
    trains_on(sweep, name, 0)
    job = queue(sweep)[name].id
    signal_to(name, sweep, "USR2")
    until(lambda: name in queue(sweep) and queue(sweep)[name].state == "PENDING", Path(sweep.root))
    end = read_result(sweep.run_dir(name))
    assert end.state == "interrupted"
    assert read_status(sweep.run_dir(name)).state == "waiting"
    assert "Submitted" not in start(sweep)[1]
    trains_on(sweep, name, end.step)
    went_on_after(sweep, name, end.step)
    assert queue(sweep)[name].id == job
    assert read_status(sweep.run_dir(name)).attempts == 2


def test_a_run_whose_time_is_over_too_often_is_left_to_the_next_start(sweep_of):
    sweep = sweep_of(1e-5, **OVERRIDES)
    (name,) = (run.name for run in sweep.runs)
    # Of 10 minutes submitit takes none for sure: any warning is that of their end.
    start(sweep, options=SlurmOptions(**vars(OPTIONS) | {"minutes": 10, "max_timeouts": 0}))
    trains_on(sweep, name, 0)
    signal_to(name, sweep, "USR2")
    until(lambda: not queue(sweep), Path(sweep.root))
    status = read_status(sweep.run_dir(name))
    assert status.state == "interrupted"
    assert "timed-out too many times" in status.error
    assert "Submitted 1 run" in start(sweep)[1]


def test_a_preempted_run_is_saved_and_goes_on_when_there_is_room(sweep_of):
    sweep = sweep_of(1e-5, **OVERRIDES)
    (name,) = (run.name for run in sweep.runs)
    start(sweep)
    trains_on(sweep, name, 0)
    urgent = ["--partition=urgent", f"--nodes={slurm_cluster.NODES}", "--exclusive", "--output=/dev/null"]
    subprocess.run(["sbatch", *urgent, "--wrap=sleep 2"], check=True, cwd="/", capture_output=True)
    until(lambda: read_result(sweep.run_dir(name)) is not None, Path(sweep.root))
    end = read_result(sweep.run_dir(name))
    assert end.state == "interrupted"
    until(lambda: read_status(sweep.run_dir(name)).attempts == 2, Path(sweep.root))
    trains_on(sweep, name, end.step)
    went_on_after(sweep, name, end.step)
    assert len(read_submissions(Path(sweep.root))) == 1


def test_a_run_over_two_hosts_has_the_numbers_of_one_process(sweep_of, inputs, tmp_path):
    sweep = sweep_of(1e-3, duration="4 steps", **{"evaluation.every": "2 steps"})
    (only,) = sweep.runs
    assert start(sweep, options=SlurmOptions(**vars(OPTIONS) | {"nodes": 2, "wait": True}))[0] == 0
    environment = json.loads((Path(sweep.run_dir(only.name)) / "environment.json").read_text())
    assert environment["processes"] == 2
    run(only.config, tmp_path / "alone")
    found, expected = (figures(where) for where in (Path(sweep.run_dir(only.name)), tmp_path / "alone"))
    evaluated = {(step, "held_out/nll") for step in (0, 2, 4)}
    assert found.keys() == evaluated | {(step, "train/loss") for step in (1, 2, 3, 4)}
    assert found == pytest.approx(expected, rel=1e-5)


def end_of_process(number):
    """Kills a process of a job, as the system does when memory runs out."""
    wanted = {f"SLURM_CONF={os.environ['SLURM_CONF']}".encode(), f"SLURM_PROCID={number}".encode()}
    killed = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            trains = b"submitit.core._submit" in (process / "cmdline").read_bytes().split(b"\0")
            is_python = (process / "exe").resolve().name.startswith("python")  # srun is told of that module too
            if trains and is_python and wanted <= set((process / "environ").read_bytes().split(b"\0")):
                os.kill(int(process.name), signal.SIGKILL)
                killed += 1
    assert killed == 1


@pytest.mark.parametrize("killed", [1, 0])
def test_a_run_over_two_hosts_goes_on_when_a_process_of_it_is_killed(sweep_of, killed):
    steps_of_run = 200
    overrides = {"duration": f"{steps_of_run} steps", "checkpoint.every": "10 steps"}
    sweep = sweep_of(1e-5, **OVERRIDES | overrides)
    (name,) = (run.name for run in sweep.runs)
    start(sweep, options=SlurmOptions(**vars(OPTIONS) | {"nodes": 2}))
    trains_on(sweep, name, 20)
    end_of_process(killed)
    until(lambda: read_status(sweep.run_dir(name)).lost == 1, Path(sweep.root))
    assert start(sweep, options=SlurmOptions(**vars(OPTIONS) | {"nodes": 2, "wait": True}))[0] == 0
    end, status = read_result(sweep.run_dir(name)), read_status(sweep.run_dir(name))
    assert (end.state, end.step) == ("finished", steps_of_run)
    assert (status.state, status.attempts, status.lost) == ("finished", 2, 1)
    assert len(read_submissions(Path(sweep.root))) == 1  # the same job
    log = (Path(sweep.run_dir(name)) / "log.txt").read_text()  # of process 0; the others write for SLURM alone
    said = log + "".join(path.read_text() for path in (Path(sweep.root) / "slurm").rglob("*.out"))
    assert f"error: process {killed} of 2 is gone" in said
    assert "goes back into the queue (1 of 3)" in said
    went_on = re.search(r"after step (\d+) of", " ".join(log.split()))
    assert int(went_on[1]) >= 10
    logged = [line["step"] for line in read_metrics(Path(sweep.run_dir(name)) / "metrics.jsonl")]
    assert logged == sorted(set(logged))
    assert logged[-1] == steps_of_run
