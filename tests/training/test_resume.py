"""A run that is ended at any moment and started again equals one that was not."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from flax.traverse_util import flatten_dict

import tests.training.poison  # noqa: F401  registers its objective
from sft_jax.runs.checkpoints import Checkpoints
from sft_jax.runs.metric_log import read_metrics
from sft_jax.runs.workdir import WorkdirError
from sft_jax.training import run
from tests import clock, tiny
from tests.models import families
from tests.ports import free_address
from tests.training import moments

TRAIN = "tests.training.driver:train"
STEPS = 7
# Evaluations (3, 6, 7) and saves (2, 3, 4, 6, 7) do not coincide; some steps are skipped.
OVERRIDES = {
    "duration": f"{STEPS} steps",
    "batch.sequences": 8,
    "data.sequence_length": 96,
    "objective.name": "poisoned",
    "objective.head_chunk_tokens": 0,
    "optimizer.max_skipped_in_a_row": 100,
    "execution.layer_layout": "scan",
    "checkpoint.keep_last": 2,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


def make_config(root, **overrides):
    return tiny.config(root, **(OVERRIDES | overrides))


@pytest.fixture(scope="module")
def uninterrupted(root):
    result = run(make_config(root), root / "uninterrupted")
    assert (result.step, result.interrupted) == (STEPS, None)
    return history(root / "uninterrupted")


def history(workdir: Path) -> dict:
    """All that must be equal: the metrics but for speeds, the skipped steps, the arrays of the last checkpoint."""
    lines = [
        {name: value for name, value in line.items() if not name.startswith("speed/")}
        for line in read_metrics(workdir / "metrics.jsonl")
    ]
    path = workdir / "skipped_steps.jsonl"
    skipped = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    checkpoints = Checkpoints(epath.Path(workdir), keep_last=1000)
    try:
        step = checkpoints.latest()
        state = checkpoints._checkpointer.load_checkpointables(step)["state"]
        kept = checkpoints.steps()
    finally:
        checkpoints.close()
    arrays = jax.tree.map(np.asarray, state)
    return {"lines": lines, "skipped": skipped, "step": step, "kept": kept, "arrays": arrays}


def assert_equal(found: dict, expected: dict) -> None:
    assert [line["step"] for line in found["lines"]] == list(range(STEPS + 1))
    assert found["lines"] == expected["lines"]
    assert found["skipped"] == expected["skipped"]
    assert found["kept"] == expected["kept"]
    assert jax.tree.structure(found["arrays"]) == jax.tree.structure(expected["arrays"])
    leaves = jax.tree_util.tree_leaves_with_path(expected["arrays"])
    for (path, leaf), other in zip(leaves, jax.tree.leaves(found["arrays"]), strict=True):
        np.testing.assert_array_equal(other, leaf, err_msg=str(path))


def spec(root: Path, workdir: Path, **more) -> dict:
    return {
        "root": str(root),
        "workdir": str(workdir),
        "overrides": OVERRIDES,
    } | more


def test_the_uninterrupted_run(uninterrupted):
    """What the other tests compare with says something: steps were skipped and trained, two evaluations kept."""
    skipped = [line["step"] for line in uninterrupted["skipped"]]
    assert 0 < len(skipped) < STEPS - 1
    assert all(len(line["example_ids"]) >= 8 for line in uninterrupted["skipped"])
    assert skipped == [line["step"] for line in uninterrupted["lines"] if line.get("train/skipped")]
    assert uninterrupted["arrays"]["skipped"] == len(skipped)
    assert uninterrupted["step"] == STEPS
    assert uninterrupted["lines"][-1]["progress/epochs"] > 1, "runs that go on must cross the end of an epoch"


@pytest.mark.slow
def test_killed_at_any_moment(root, uninterrupted, children):
    """One directory, killed six times at different moments and started again each time."""
    rng = random.Random(0)
    workdir = root / "killed"
    kills = [
        {"moment": "dispatch", "step": 1},
        {"moment": "in save", "step": 2, "delay": rng.uniform(0, 0.02)},
        {"moment": "in evaluation", "step": 3},
        {"moment": "before save", "step": 4},  # the log has step 4, no checkpoint has
        {"moment": "saved", "step": 4, "torn": '{"step": 5, "train/lo'},
        {"moment": "in save", "step": 7, "delay": rng.uniform(0, 0.1)},
    ]
    for kill in kills:
        (end,) = children.run([(TRAIN, spec(root, workdir, **kill))])
        assert end.status == -signal.SIGKILL, end.output[-3000:]
    result = run(make_config(root), workdir)
    assert (result.step, result.interrupted) == (STEPS, None)
    assert_equal(history(workdir), uninterrupted)


@pytest.mark.slow
def test_a_delta_net_that_was_killed(tmp_path, children):
    """Layers with a state in place of keys and values, and experts (Qwen3-Next)."""
    families.save(families.torch_model("qwen3_next"), tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    tiny.write_rows(tmp_path / "train.jsonl", 48)
    tiny.write_rows(tmp_path / "held_out.jsonl", 12, seed=1)
    run(make_config(tmp_path), tmp_path / "uninterrupted")
    (end,) = children.run([(TRAIN, spec(tmp_path, tmp_path / "killed", moment="dispatch", step=6))])
    assert end.status == -signal.SIGKILL, end.output[-3000:]
    expected, left = history(tmp_path / "uninterrupted"), history(tmp_path / "killed")
    assert left["step"] in (3, 4)  # whose checkpoint may have been in the making
    assert any("delta" in path for path in flatten_dict(left["arrays"]["trained"], sep="/"))
    run(make_config(tmp_path), tmp_path / "killed")
    assert_equal(history(tmp_path / "killed"), expected)


def test_a_checkpoint_left_by_a_killed_process_is_removed(root, uninterrupted, tmp_path):
    """The process may be ended when a checkpoint is saved and the one before it not yet removed."""
    shutil.copytree(root / "uninterrupted" / "checkpoints", tmp_path / "checkpoints")
    best, last = uninterrupted["kept"]
    left = Checkpoints(epath.Path(tmp_path), keep_last=1)  # the best is one by a metric that is not asked for here
    assert left.steps() == [last]
    left.close()
    shutil.copytree(root / "uninterrupted" / "checkpoints", tmp_path / "again" / "checkpoints")
    kept = Checkpoints(epath.Path(tmp_path / "again"), keep_last=1, best_metric="held_out/nll")
    assert kept.steps() in ([last], [best, last])
    assert kept.best() in kept.steps()
    kept.close()
    looked_at = Checkpoints(epath.Path(root / "uninterrupted"), keep_last=1, read_only=True)
    assert looked_at.steps() == [best, last]
    looked_at.close()


def test_killed_before_the_last_checkpoint_had_its_digests(root, uninterrupted):
    """What is beside the newest checkpoint is kept until that is known to be whole; a finished run is looked at too."""
    workdir = root / "without digests"
    shutil.copytree(root / "uninterrupted", workdir)
    checkpoints = workdir / "checkpoints"
    shutil.copytree(checkpoints / "6", checkpoints / "4")
    (checkpoints / "7" / "digests.json").unlink()
    result = run(make_config(root), workdir)
    assert (result.step, result.interrupted) == (STEPS, None)
    assert "held_out/nll" in result.metrics
    assert (checkpoints / "7" / "digests.json").exists()
    assert_equal(history(workdir), uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 2), (signal.SIGINT, 5)])
def test_signals_save_and_leave(root, uninterrupted, number, step):
    workdir = root / f"signal {number}"
    with pytest.MonkeyPatch.context() as patch:
        moments.at("dispatch", step, lambda: os.kill(os.getpid(), number), patch.setattr)
        result = run(make_config(root), workdir)
    assert (result.step, result.interrupted) == (step, number)
    assert history(workdir)["step"] == step
    assert run(make_config(root), workdir).step == STEPS
    found = history(workdir)
    assert_equal(found | {"kept": uninterrupted["kept"]}, uninterrupted)


@pytest.mark.slow
def test_the_command_leaves_with_a_message(root):
    """SIGTERM to `python -m sft_jax.train`: exit status 143, and what to do next."""
    config = tiny.config(root)  # writes the model and the data
    workdir = root / "command"
    flags = {
        "model.source": config.model.source,
        "data.train": config.data.train,
        "data.sequence_length": 128,
        "duration": "5000 steps",
        "checkpoint.every": "1000 steps",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "sft_jax.train", "--config=configs/sft.py", f"--workdir={workdir}"]
        + [f"--config.{name}={value}" for name, value in flags.items()],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    asked = threading.Event()

    def terminate_after_the_first_step():
        while process.poll() is None and not asked.wait(0.1):
            if (workdir / "metrics.jsonl").exists() and (workdir / "metrics.jsonl").read_text():
                process.send_signal(signal.SIGTERM)
                return

    watcher = threading.Thread(target=terminate_after_the_first_step)
    watcher.start()
    output, _ = process.communicate()
    asked.set()
    watcher.join()
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "Interrupted: step" in output
    assert "Start the same command again to continue." in output
    assert any((workdir / "checkpoints").iterdir())


def leave_at(step: int, patch) -> None:
    moments.at("dispatch", step, lambda: os.kill(os.getpid(), signal.SIGTERM), patch.setattr)


def assert_close(lines: list[dict], expected: list[dict], tolerance: float) -> None:
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    for line, other in zip(lines, expected, strict=True):
        assert line.keys() == other.keys()
        for name in line:
            if name.startswith("progress/"):
                assert line[name] == other[name], name
            elif "loss" in name or "nll" in name:
                assert line[name] == (None if other[name] is None else pytest.approx(other[name], rel=tolerance)), name


@pytest.mark.slow
def test_other_devices_and_another_layer_layout_go_on(root, uninterrupted):
    """8 devices, then 4 with unrolled layers, then 1 with scanned ones."""
    workdir = root / "topologies"
    for devices, layout, stop_after in ((8, "scan", 2), (4, "unrolled", 4), (1, "scan", None)):
        with pytest.MonkeyPatch.context() as patch:
            if stop_after:
                leave_at(stop_after, patch)
            config = make_config(root, **{"execution.layer_layout": layout})
            result = run(config, workdir, devices=jax.devices()[:devices])
        assert result.step == (stop_after or STEPS)
    assert_close(history(workdir)["lines"], uninterrupted["lines"], 1e-5)


def test_processes_that_read_other_rows_do_not_train(root, tmp_path, children):
    """Each plans the order by itself: with other rows they would train on some twice and on others never."""
    make_config(root)  # writes the files
    common = {"coordinator": free_address(), "devices": 4}
    (tmp_path / "other.jsonl").write_text((root / "train.jsonl").read_text().replace("seven", "eight", 1))
    (tmp_path / "same.jsonl").write_text((root / "train.jsonl").read_text())
    for folder, name in (("a", "same"), ("b", "other")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.jsonl").symlink_to(tmp_path / f"{name}.jsonl")
    specs = []
    for number, folder in enumerate("ab"):
        one = spec(root, tmp_path / "run", process=number, **common)
        one["cwd"] = str(tmp_path / folder)
        one["overrides"] = {**one.get("overrides", {}), "data.train": "train.jsonl"}
        specs.append(one)
    for end in children.run([(TRAIN, one) for one in specs]):
        assert "train: processes [1] of 2 have another one than process 0" in end.output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_train_the_same_and_one_goes_on(root, uninterrupted, children):
    """2 processes x 4 devices until one of them gets SIGTERM: both leave after the same step; 1 process x 8 goes on."""
    workdir = root / "processes"
    common = {"coordinator": free_address(), "devices": 4}
    ends = [{}, {"moment": "dispatch", "step": 3, "signal": "SIGTERM"}]
    found = children.run([(TRAIN, spec(root, workdir, process=i, **common, **ends[i])) for i in range(2)])
    assert [end.status for end in found] == [0, 0], found
    results = [end.result for end in found]
    assert results[0]["step"] == results[1]["step"]
    assert 3 <= results[0]["step"] < STEPS, "both must have left early"
    assert all(result["interrupted"] for result in results)
    assert run(make_config(root), workdir).step == STEPS
    assert_close(history(workdir)["lines"], uninterrupted["lines"], 1e-6)


def test_a_finished_run_started_again_changes_nothing(root, uninterrupted, capsys):
    workdir = root / "uninterrupted"
    files = lambda: {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    before = files()
    result = run(make_config(root), workdir)
    assert files() == before
    assert "holds the finished run: all 7 steps are done" in " ".join(capsys.readouterr().out.split())
    last = uninterrupted["lines"][-1]
    assert result.step == result.total_steps == STEPS
    assert result.metrics == {name: last[name] for name in last if name.startswith("held_out/")}
    assert "held_out/nll" in result.metrics


def test_a_run_keeps_the_date_of_its_first_start(root, tmp_path, monkeypatch):
    """Its template writes the date: on another day it goes on with the rows it has begun with."""
    template = tmp_path / "dated.jinja"
    template.write_text("{{ strftime_now('%Y-%m-%d') }}" + tiny.CHATML)
    fixed = {"model.chat_template": str(template), "duration": "1 steps", "objective.name": "cross_entropy"}
    make = lambda **overrides: make_config(root, **fixed, **overrides)
    for day in ("2026-01-31", "2026-02-01"):
        clock.tell(monkeypatch, itertools.repeat(day))
        assert run(make(), tmp_path / "run").step == 1
        assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["date"] == "2026-01-31"
    with pytest.raises(WorkdirError, match=r"data\.date: '2026-01-31' there, '2026-02-01' asked for"):
        run(make(**{"data.date": "2026-02-01"}), tmp_path / "run")


def test_another_config_is_refused_with_the_difference(root, uninterrupted):
    with pytest.raises(WorkdirError) as error:
        run(make_config(root, **{"optimizer.learning_rate": 0.5, "seed": 3}), root / "uninterrupted")
    assert "optimizer.learning_rate: 0.01 there, 0.5 asked for" in str(error.value)
    assert "seed: 0 there, 3 asked for" in str(error.value)
    assert "another --workdir" in str(error.value)


def test_changed_data_is_refused(root, uninterrupted):
    path = root / "train.jsonl"
    before = path.read_text()
    try:
        path.write_text(before.replace("seven", "eight", 1))
        with pytest.raises(WorkdirError, match="train changed since it started"):
            run(make_config(root), root / "uninterrupted")
    finally:
        path.write_text(before)
