"""Runs of a sweep one by one, as other schedulers start them; and one run on two hosts."""

import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sft_jax.runs.metric_log import read_metrics
from sft_jax.runs.result import FINISHED, RunEnd, read_result, write_result
from sft_jax.runs.workdir import SESSION_END
from sft_jax.sweeps.directory import claim_sweep, open_sweep
from sft_jax.sweeps.hparams import EXPERIMENT
from sft_jax.sweeps.status import read_status
from tests import tiny
from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[1]
SWEEP = """
from sft_jax.sweeps import values

def get_sweep():
    return values("optimizer.learning_rate", [1e-3, 2e-3])
"""


@pytest.fixture
def sweep(tmp_path):
    config = tiny.config(tmp_path, duration="2 steps", **{"evaluation.every": "1 steps"})
    stated = [{"optimizer.learning_rate": rate} for rate in (1e-3, 2e-3)]
    return claim_sweep(tmp_path / "sweep", sweep="x/sweep.py", config="configs/sft.py", base=config, stated=stated)


def command(*arguments, module="sft_jax.sweep_run"):
    return [sys.executable, "-m", module, *arguments]


def call(*arguments, **more):
    return subprocess.run(command(*arguments, **more), capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
def test_a_run_by_its_place_and_by_its_name(sweep):
    first, second = sweep.runs
    done = call(f"--workdir={sweep.root}", "--run=1")
    assert done.returncode == 0, done.stderr
    assert f"{second.name}: finished at step 2 of 2" in done.stdout
    assert (read_result(sweep.run_dir(second.name)).done, read_status(sweep.run_dir(second.name)).attempts) == (True, 1)
    assert read_result(sweep.run_dir(first.name)) is None
    assert (sweep.run_dir(second.name) / SESSION_END).exists()

    again = call(f"--workdir={sweep.root}", f"--run={second.name}")
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert read_status(sweep.run_dir(second.name)).attempts == 1


@pytest.mark.slow
def test_a_run_that_fails_says_why(sweep, tmp_path):
    (tmp_path / "train.jsonl").write_text("{\n")
    done = call(f"--workdir={sweep.root}", "--run=0")
    assert done.returncode == 1
    assert f"{sweep.runs[0].name}: failed at step 0" in done.stdout
    assert "train.jsonl" in done.stdout


@pytest.mark.parametrize("run", ["2", "seed=0"])
def test_a_run_that_there_is_not(sweep, run):
    done = call(f"--workdir={sweep.root}", f"--run={run}")
    assert done.returncode == 1
    assert f"error: --run={run}: expected a number from 0 to 1, or one of the runs" in done.stderr
    assert sweep.runs[0].name in done.stderr


def test_a_run_is_chosen_by_a_number_or_a_name_that_is_advised(sweep):
    """The runs are done, so that none of them trains here."""
    for run in sweep.runs:
        sweep.run_dir(run.name).mkdir()
        write_result(sweep.run_dir(run.name), RunEnd(FINISHED, 2, 2, {}, None, {}, 1.0, None, None))
    said = call(f"--workdir={sweep.root}", "--run=2").stderr
    last = re.search(r"expected a number from 0 to (\d+), or one of the runs", said)[1]
    names = [line.strip() for line in said.splitlines() if line.startswith("  ")]
    assert names == [run.name for run in sweep.runs]
    for run, name in ((last, names[-1]), (names[0], names[0])):
        done = call(f"--workdir={sweep.root}", f"--run={run}")
        assert (done.returncode, done.stdout) == (0, f"{name}: finished at step 2 of 2\n"), done.stderr


def test_a_directory_of_no_sweep(tmp_path):
    done = call(f"--workdir={tmp_path}", "--run=0")
    assert done.returncode == 1
    assert f"error: {tmp_path} holds no sweep" in done.stderr


@pytest.mark.slow
def test_one_run_on_two_hosts(sweep):
    """Started on both, it is one run, which the first host writes; its numbers are those of one process."""
    name, alone = (run.name for run in sweep.runs)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"--coordinator=localhost:{free.getsockname()[1]}"
    where = ("--distributed", coordinator, "--num_processes=2")
    started = [
        subprocess.Popen(
            command(f"--workdir={sweep.root}", f"--run={name}", *where, f"--process_id={i}"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
        for i in range(2)
    ]
    said = [process.communicate(timeout=PATIENCE_SECONDS)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert all(f"{name}: finished at step 2 of 2" in text for text in said)
    assert (read_result(sweep.run_dir(name)).state, read_status(sweep.run_dir(name)).attempts) == ("finished", 1)

    assert call(f"--workdir={sweep.root}", f"--run={alone}").returncode == 0
    first, other = (read_metrics(sweep.run_dir(run) / "metrics.jsonl")[0] for run in (name, alone))
    assert first["held_out/nll"] == pytest.approx(other["held_out/nll"], rel=1e-5)  # before the first step


@pytest.mark.slow
def test_the_list_has_a_command_for_each_run_that_is_not_done(tmp_path):
    tiny.config(tmp_path)
    (tmp_path / "sweep.py").write_text(SWEEP)
    paths = {"model.source": "model", "data.train": "train.jsonl", "data.held_out": "held_out.jsonl"}
    arguments = [
        *("--config=configs/sft.py", f"--sweep={tmp_path / 'sweep.py'}", f"--workdir={tmp_path / 'runs'}"),
        *(f"--config.{name}={tmp_path / path}" for name, path in paths.items()),
        *("--config.data.sequence_length=128", "--config.data.cache=", "--config.duration=1 steps"),
        *("--config.batch.sequences=8", "--launcher=list"),
    ]
    listed = call(*arguments, module="sft_jax.sweep")
    assert listed.returncode == 0, listed.stderr
    names = [run.name for run in open_sweep(tmp_path / "runs").runs]
    commands = [shlex.split(line) for line in listed.stdout.splitlines()]
    expected = ["python", "-m", "sft_jax.sweep_run", f"--workdir={tmp_path / 'runs'}"]
    assert commands == [[*expected, f"--run={name}"] for name in names]
    assert call(*commands[0][3:]).returncode == 0
    left = call(*arguments, module="sft_jax.sweep").stdout.splitlines()
    assert [shlex.split(line) for line in left] == commands[1:]
    assert (tmp_path / "runs" / EXPERIMENT).exists()
    assert call(*commands[1][3:]).returncode == 0
    done = call(*arguments, module="sft_jax.sweep")
    assert (done.returncode, done.stdout) == (0, "")
    assert "Nothing is left to do" in done.stderr
