"""The command that runs sweeps: what it shows, what it refuses before anything is written, and what it hands on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

ROOT = Path(__file__).parents[1]
SWEEP = """
from sft_jax.sweeps import product, seeds, values

def get_sweep():
    return product(values("optimizer.learning_rate", [1e-3, 1e-2]), seeds(2))
"""


def sweep(*arguments):
    command = [sys.executable, "-m", "sft_jax.sweep", "--config=configs/sft.py:lora", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    made = tmp_path_factory.mktemp("sweep")
    tiny.config(made)
    (made / "sweep.py").write_text(SWEEP)
    return made


def flags(root, workdir):
    values = {
        "model.source": root / "model",
        "data.train": root / "train.jsonl",
        "data.held_out": root / "held_out.jsonl",
        "data.sequence_length": 128,
        "data.cache": "",
        "duration": "4 steps",
        "evaluation.every": "2 steps",
        "evaluation.samples": 0,
        "adapter.rank": 2,
    }
    fields = [f"--config.{name}={value}" for name, value in values.items()]
    return [f"--sweep={root / 'sweep.py'}", f"--workdir={workdir}", *fields]


@pytest.mark.slow
def test_a_sweep_that_is_run_in_two_parts(root, tmp_path):
    some = sweep(*flags(root, tmp_path / "out"), "--only=*seed=0-*")
    assert some.returncode == 0, some.stdout + some.stderr
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/metrics.jsonl")}
    assert sorted(path.parent.name[:-9] for path in first) == ["learning_rate=0.01,seed=0", "learning_rate=1e-3,seed=0"]
    rest = sweep(*flags(root, tmp_path / "out"))
    assert rest.returncode == 0, rest.stdout + rest.stderr
    assert len(list((tmp_path / "out").glob("*/result.json"))) == 4
    assert {path: path.stat().st_mtime_ns for path in first} == first
    dry = sweep(*flags(root, tmp_path / "out"), "--dry_run", "--workers=2")
    assert dry.returncode == 0, dry.stderr
    assert "4 runs: 4 finished" in dry.stdout
    assert "Time: about 0 s of steps left, one run after the other, by the steps of 4 runs" in dry.stdout
    assert "Memory of a step, as compiled for cpu: 1 program\n" in dry.stdout


MISTAKES = [  # (flags, what is said)
    (["--launcher=slurm", "--workers=2"], "--workers: not read here, it goes with --launcher=local; leave it out"),
    (["--launcher=local", "--slurm_gpus=2"], "--slurm_gpus: not read here, it goes with --launcher=slurm"),
    (["--launcher=cloud"], "value should be one of <local|slurm|stacked|list>"),
    (["--config.adapter.rank=0"], "error: runs 1-4: --config.adapter.rank=0 must be at least 1"),
]


@pytest.mark.slow
def test_what_does_not_go_with_a_search_is_refused(root, tmp_path):
    halved = SWEEP + "\ndef get_search():\n    return SuccessiveHalving(first=2, eta=2)\n"
    (tmp_path / "sweep.py").write_text(halved.replace("import ", "import SuccessiveHalving, "))
    given = [f"--sweep={tmp_path / 'sweep.py'}", *flags(root, tmp_path / "out")[1:]]
    for more, said in (
        ("--only=*", "--only: a search chooses its runs itself; leave it out"),
        ("--launcher=list", "--launcher=list: its commands run to their end, which SuccessiveHalving decides; give"),
    ):
        done = sweep(*given, more)
        assert done.returncode == 1
        assert said in done.stderr
    assert not (tmp_path / "out").exists()
    (tmp_path / "sweep.py").write_text(SWEEP)
    listed = sweep(*given, "--launcher=list")
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.count("sft_jax.sweep_run") == 4


@pytest.mark.slow
@pytest.mark.parametrize(("more", "said"), MISTAKES, ids=[said for _, said in MISTAKES])
def test_a_mistake_is_one_message_and_nothing_is_written(root, tmp_path, more, said):
    done = sweep(*flags(root, tmp_path / "out"), *more)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
