"""Runs of a sweep in one process: what they share is read once, and each is what it would be alone."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tests.training.poison  # noqa: F401  registers its objectives
from sft_jax.runs.metric_log import read_metrics
from sft_jax.runs.result import read_result
from sft_jax.sharding import make_mesh
from sft_jax.sweeps import shared as sharing
from sft_jax.sweeps.executing import execute
from sft_jax.sweeps.runs import SweepRun
from sft_jax.sweeps.shared import Shared
from sft_jax.sweeps.status import read_status
from sft_jax.training import read_once
from sft_jax.training import run as train
from tests import tiny

SHORT = {"duration": "2 steps", "evaluation.every": "1 steps", "optimizer.max_skipped_in_a_row": 2}


def a_run(root, name, **overrides):
    return SweepRun(name, overrides, tiny.config(root, **SHORT | overrides))


def history(directory):
    lines = read_metrics(directory / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.startswith("speed/")} for line in lines]


@pytest.fixture
def counted(monkeypatch):
    """How often rows, and weights, were read."""
    counts = {"rows": 0, "weights": 0}
    read_data, base_of = read_once.read_data, sharing.base_of

    def read(*arguments):
        counts["rows"] += 1
        return read_data(*arguments)

    def opened(model):
        base = base_of(model)

        def params(*arguments):
            counts["weights"] += 1
            return base.params(*arguments)

        return sharing.dataclasses.replace(base, params=params)

    monkeypatch.setattr(read_once, "read_data", read)
    monkeypatch.setattr(sharing, "base_of", opened)
    return counts


@pytest.mark.slow
def test_what_runs_share_is_read_once(tmp_path, counted):
    """Also where seeds differ, which order rows anew; the weights that a run trained are not those of the next."""
    runs = [a_run(tmp_path, "a", seed=0), a_run(tmp_path, "b", seed=1), a_run(tmp_path, "c", seed=0)]
    shared = Shared()
    for run in runs:
        assert execute(run, tmp_path / run.name, shared).state == "finished"
    assert counted == {"rows": 1, "weights": 1}
    train(runs[1].config, tmp_path / "alone")
    assert history(tmp_path / "b") == history(tmp_path / "alone")
    assert history(tmp_path / "a") == history(tmp_path / "c") != history(tmp_path / "b")
    reports = [json.loads((tmp_path / name / "data_report.json").read_text()) for name in ("b", "alone")]
    assert [report.pop("tokenizing")["records"] for report in reports] == [48, 48]
    assert reports[0] == reports[1]


@pytest.mark.slow
def test_weights_that_need_too_much_memory_are_read_anew(tmp_path, counted):
    shared = Shared(keep_bytes=1000)
    for name in ("a", "b"):
        assert execute(a_run(tmp_path, name), tmp_path / name, shared).state == "finished"
    assert counted == {"rows": 1, "weights": 2}


def test_other_rows_are_read_and_those_before_are_kept(tmp_path, counted, monkeypatch):
    """Two data sets, back and forth; a third takes the place of the one that was read first."""
    monkeypatch.setattr("sft_jax.sweeps.executing.train", lambda *_, data, **__: seen.append(len(data.examples)))
    seen, shared = [], Shared()
    for number, count in enumerate((5, 9, 5, 9, 12, 9, 5)):
        rows = tiny.write_rows(tmp_path / f"{count}.jsonl", count)
        run = a_run(tmp_path, f"run {number}", **{"data.train": str(rows), "batch.sequences": 8})
        execute(run, tmp_path / run.name, shared)
    assert seen == [5, 9, 5, 9, 12, 9, 5]
    assert counted["rows"] == 4


def test_a_run_that_fails(tmp_path, capfd):
    """It says why in its result, its status and its log, and nothing of it elsewhere; what is mended goes on."""
    wrong = a_run(tmp_path, "run", **{"data.train": str(tmp_path / "gone.jsonl")})
    end = execute(wrong, tmp_path / "run", Shared(), launcher="slurm")
    assert end == read_result(tmp_path / "run")
    assert (end.state, end.step) == ("failed", 0)
    assert "gone.jsonl" in end.error
    status = read_status(tmp_path / "run")
    assert (status.state, status.error, status.launcher) == ("failed", end.error, "slurm")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.startswith("---- run: attempt 1, ")
    assert "Traceback" in log
    assert end.error in log
    assert capfd.readouterr() == ("", "")
    print("here again")
    sys.stdout.flush()
    assert capfd.readouterr().out == "here again\n"


def test_a_signal_before_the_first_step(tmp_path, monkeypatch):
    """The run is not over: it says that it was interrupted, and whoever asked for it leaves."""

    def ended(*_):
        sys.exit(143)

    monkeypatch.setattr(read_once, "read_data", ended)
    with pytest.raises(SystemExit):
        execute(a_run(tmp_path, "run"), tmp_path / "run", Shared())
    assert read_status(tmp_path / "run").state == "interrupted"
    assert read_result(tmp_path / "run") is None


def test_a_directory_that_cannot_be_used(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text("{")
    end = execute(a_run(tmp_path, "run"), tmp_path / "run", Shared())
    assert (end.state, "status.json is damaged" in end.error) == ("failed", True)


def test_kept_weights_are_not_those_that_a_step_takes_over():
    """Arrays of the host may be used in place; what a step makes of them does not reach the copy."""
    mesh = make_mesh({"replica": 1, "fsdp": 1, "expert": 1, "tensor": 1}, jax.devices()[:1])
    made = {"w": jnp.full((1 << 18,), 3.0), "v": {"b": jnp.arange(4.0)}}
    reads = []

    def read(*asked):
        reads.append(asked)
        return jax.tree.map(jnp.copy, made)

    weights = sharing._KeptWeights(read, 1 << 30)
    double = jax.jit(lambda tree: jax.tree.map(lambda leaf: 2 * leaf, tree), donate_argnums=0)
    for _ in range(3):
        given = weights("scan", "float32", mesh)
        doubled = double(given)
        assert given["w"].is_deleted()
        jax.tree.map(lambda one, other: np.testing.assert_array_equal(one, 2 * other), doubled, made)
    assert len(reads) == 1
    weights("unrolled", "float32", mesh)  # in another form they are others
    assert len(reads) == 2
