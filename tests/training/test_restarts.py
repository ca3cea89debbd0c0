"""`--restarts` on a run of two processes of which one is killed: both are started again and go on to the same end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sft_jax.runs.metric_log import read_metrics
from tests import tiny
from tests.patience import PATIENCE_SECONDS
from tests.ports import free_address

ROOT = Path(__file__).parents[2]
STEPS = 8
FLAGS = (
    *(f"--config.duration={STEPS} steps", "--config.evaluation.every=2 steps", "--config.checkpoint.every=2 steps"),
    *("--config.evaluation.samples=0", "--config.batch.sequences=8", "--config.data.sequence_length=96"),
    *(
        "--config.optimizer.learning_rate=1e-3",
        "--config.optimizer.warmup=2 steps",
        "--config.precision.matmul=float32",
    ),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    made = tmp_path_factory.mktemp("restarts")
    tiny.config(made)
    return made


def ends(root: Path, workdir: Path, killed: int | None = None) -> list[tuple[int, str]]:
    """Trains on two processes with `--restarts=2`; the exit status of each command, and what it said."""
    address = free_address()
    files = (f"--config.model.source={root / 'model'}", f"--config.data.train={root / 'train.jsonl'}")
    more = (f"--config.data.held_out={root / 'held_out.jsonl'}", "--config.data.cache=", f"--workdir={workdir}")
    joined = ("--distributed", f"--coordinator={address}", "--num_processes=2", "--restarts=2")
    running = []
    for number in range(2):
        once = {"KILLED_ONCE": str(root / f"killed {number}")} if number == killed else {}
        command = (sys.executable, "-m", "tests.training.killed_once", "--config=configs/sft.py:full")
        running.append(
            subprocess.Popen(
                [*command, *files, *more, *FLAGS, *joined, f"--process_id={number}"],
                cwd=ROOT,
                env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""} | once,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        said = [process.communicate(timeout=PATIENCE_SECONDS)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, text) for process, text in zip(running, said, strict=True)]


def history(workdir: Path) -> list[dict]:
    """The lines of the metrics but for speeds."""
    lines = read_metrics(workdir / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.startswith("speed/")} for line in lines]


@pytest.fixture(scope="module")
def undisturbed(root):
    found = ends(root, root / "undisturbed")
    assert [status for status, _ in found] == [0, 0], found
    assert not any("starting again" in text for _, text in found)
    return history(root / "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize("killed", [1, 0])
def test_a_run_of_which_a_process_is_killed_ends_as_one_that_was_left_alone(root, undisturbed, killed):
    workdir = root / f"without {killed}"
    found = ends(root, workdir, killed)
    assert [status for status, _ in found] == [0, 0], found
    again = "; starting again from the last checkpoint (1 of 2)"
    assert f"killed by SIGKILL{again}" in found[killed][1], found
    other = found[1 - killed][1]
    if killed == 1 or "SIGABRT" not in other:
        assert f"error: process {killed} of 2 is gone" in other, found
        assert f"another process is gone{again}" in other, found
    else:  # JAX was faster
        assert f"killed by SIGABRT (as JAX ends a process when process 0 is gone){again}" in other, found
    assert all("(2 of 2)" not in text for _, text in found), found
    lines = history(workdir)
    assert [line["step"] for line in lines] == list(range(STEPS + 1))
    assert lines == undisturbed
