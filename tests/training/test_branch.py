"""A run that begins at a checkpoint of another one's stable phase is the run of its length planned from the start."""

import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from rich.console import Console

from sft_jax.runs.checkpoints import Checkpoints
from sft_jax.runs.metric_log import read_metrics
from sft_jax.runs.result import read_result
from sft_jax.runs.workdir import WorkdirError
from sft_jax.training import run
from sft_jax.training.stacked.loop import run_stacked
from tests import tiny

QUIET = Console(quiet=True)
WSD = {
    "optimizer.schedule": "wsd",
    "duration": "12 steps",
    "optimizer.decay": "3 steps",
    "adapter.dropout": 0.1,
    "checkpoint.every": "2 steps",
    "checkpoint.keep_last": 2,
    "checkpoint.best_metric": "",
    "evaluation.every": "4 steps",
}
SHORT = {"duration": "8 steps", "optimizer.decay": "4 steps", "optimizer.decay_shape": "sqrt"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("branch")


def config(root, **changes):
    return tiny.config(root, "lora", **WSD | changes)


@pytest.fixture(scope="module")
def trunk(root):
    """A run of 12 steps that was left after 6; kept are its checkpoints of 4 and 6."""
    assert run(config(root), root / "trunk", console=QUIET, stop_after=6).paused
    return root / "trunk"


@pytest.fixture(scope="module")
def planned(root):
    run(config(root, **SHORT), root / "planned", console=QUIET)
    return root / "planned"


def lines_of(workdir, after=-1, but=()):
    """All that is logged but times, and what is named."""
    return [
        {name: value for name, value in line.items() if not name.startswith(("speed/", *but))}
        for line in read_metrics(workdir / "metrics.jsonl")
        if line["step"] > after
    ]


def last_state(workdir):
    checkpoints = Checkpoints(epath.Path(workdir), read_only=True)
    try:
        step = checkpoints.latest()
        return step, jax.tree.map(np.asarray, checkpoints._checkpointer.load_checkpointables(step)["state"])
    finally:
        checkpoints.close()


def assert_is_the_planned_run(workdir, planned):
    """To the last bit: metrics, parameters, moments, counters."""
    assert [line["step"] for line in lines_of(workdir)] == [4, 5, 6, 7, 8]
    assert lines_of(workdir, after=4) == lines_of(planned, after=4)
    held_out = lambda line: {name: value for name, value in line.items() if name.startswith("held_out/")}
    start, at_the_same = lines_of(workdir)[0], lines_of(planned)[4]
    assert held_out(start) == {name: at_the_same[name] for name in held_out(start)}  # the gap is to steps of its own
    (step, found), (_, expected) = last_state(workdir), last_state(planned)
    assert step == 8
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_branch_is_the_run_planned_so_from_the_beginning(root, trunk, planned, tmp_path):
    rates = [line["train/learning_rate"] for line in lines_of(planned) if line["step"]]
    assert rates[3] == rates[1] > rates[4] > rates[7]
    result = run(config(root, branch=f"{trunk}:4", **SHORT), tmp_path / "run", console=QUIET)
    assert (result.step, result.total_steps) == (8, 8)
    assert_is_the_planned_run(tmp_path / "run", planned)
    ended, as_planned = read_result(tmp_path / "run"), read_result(planned)
    assert (ended.counters, ended.metrics) == (as_planned.counters, as_planned.metrics)
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert "branch" in environment["fingerprints"]


def test_stopped_and_gone_on_with_after_the_other_run_is_gone(root, trunk, planned, tmp_path):
    """Before it has a checkpoint of its own it begins anew; after that it needs the other run no more."""
    shutil.copytree(trunk, tmp_path / "trunk")
    branch = config(root, branch=f"{tmp_path / 'trunk'}:4", **SHORT, **{"checkpoint.every": "100 steps"})
    with pytest.raises(RuntimeError, match="ended"):
        run(branch, tmp_path / "run", {"x": lambda model, state: ended()}, QUIET)
    paused = run(branch, tmp_path / "run", console=QUIET, stop_after=6)
    assert (paused.step, paused.paused) == (6, True)
    before = json.loads((tmp_path / "run" / "environment.json").read_text())["fingerprints"]
    shutil.rmtree(tmp_path / "trunk")
    assert run(branch, tmp_path / "run", console=QUIET).step == 8
    assert_is_the_planned_run(tmp_path / "run", planned)
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["fingerprints"] == before


def ended():
    raise RuntimeError("ended")


@pytest.mark.slow
def test_branches_of_several_lengths_train_in_one_program(root, trunk, planned, tmp_path):
    """As a sweep over the length has them; each is what it is by itself."""
    longer = SHORT | {"duration": "10 steps", "optimizer.decay_shape": "linear"}
    configs = [config(root, branch=f"{trunk}:4", **changes) for changes in (SHORT, longer)]
    ends = run_stacked(configs, [tmp_path / "8", tmp_path / "10"], console=QUIET)
    assert [(end.state, end.step) for end in ends] == [("finished", 8), ("finished", 10)]
    found, expected = lines_of(tmp_path / "8"), lines_of(planned, after=3)
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    losses = [[line["train/loss"] for line in lines[1:]] for lines in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_another_checkpoint_in_its_place_is_refused(root, trunk, tmp_path):
    shutil.copytree(trunk, tmp_path / "trunk")
    branch = config(root, branch=f"{tmp_path / 'trunk'}:4", **SHORT)
    with pytest.raises(RuntimeError, match="ended"):
        run(branch, tmp_path / "run", {"x": lambda model, state: ended()}, QUIET)
    digests = tmp_path / "trunk" / "checkpoints" / "4" / "digests.json"
    digests.write_text(digests.read_text() + "\n")  # as of other files
    with pytest.raises(WorkdirError, match="other inputs: branch changed since it started"):
        run(branch, tmp_path / "run", console=QUIET)


def test_the_last_stable_checkpoint_is_saved_and_kept(root, trunk, tmp_path):
    """Whatever is saved later, and though it was not due; a branch of a branch goes on from it, to any length."""
    changes = {"optimizer.decay": "5 steps", "checkpoint.keep_last": 1}
    run(config(root, branch=f"{trunk}:4", **changes), tmp_path / "run", console=QUIET)
    found = Checkpoints(epath.Path(tmp_path / "run"), read_only=True)
    assert found.steps() == [7, 12]
    found.close()
    longer = {"duration": "9 steps", "optimizer.decay": "1 steps"}
    run(config(root, branch=f"{tmp_path / 'run'}:7", **longer), tmp_path / "again", console=QUIET)
    run(config(root, **longer), tmp_path / "planned", console=QUIET)
    # It has measured at its own beginning, since when the gap is counted.
    found, expected = (lines_of(tmp_path / name, after=7, but=("held_out/gap",)) for name in ("again", "planned"))
    assert found == expected
    run(config(root, **changes, **{"checkpoint.keep_stable": False}), tmp_path / "not kept", console=QUIET)
    found = Checkpoints(epath.Path(tmp_path / "not kept"), read_only=True)
    assert found.steps() == [12]
    found.close()


def refused(config, workdir, match):
    with pytest.raises(ValueError, match=match) as error:
        run(config, workdir, console=QUIET)
    assert not workdir.exists()
    return str(error.value)


def test_a_checkpoint_of_the_decay_is_refused_and_one_before_it_is_advised(root, tmp_path):
    run(config(root, duration="4 steps"), tmp_path / "trunk", console=QUIET)
    trunk = tmp_path / "trunk"
    match = r"is in its decay after step 1, .* checkpoints of \[1\]"
    refused(config(root, branch=f"{trunk}:4", **SHORT), tmp_path / "run", match)
    # The run of 4 steps has a warm-up of 2: also there no step depends on the length.
    assert run(config(root, branch=f"{trunk}:1", **SHORT), tmp_path / "run", console=QUIET).step == 8


def test_a_decay_that_began_before_the_checkpoint_is_refused_and_mended_as_advised(root, trunk, tmp_path):
    message = refused(
        config(root, branch=f"{trunk}:6", **SHORT),
        tmp_path / "run",
        r"--config.optimizer.decay='4 steps': a run of 8 steps is in its decay after step 4",
    )
    assert "give '2 steps' or less" in message
    mended = config(root, branch=f"{trunk}:6", **SHORT | {"optimizer.decay": "2 steps"})
    assert run(mended, tmp_path / "run", console=QUIET).step == 8
    longer = config(root, branch=f"{trunk}:6", **SHORT | {"duration": "10 steps"})
    assert run(longer, tmp_path / "longer", console=QUIET, stop_after=7).step == 7
    match = r"--config.duration='6 steps' is 6 steps, those before .* are 6; give more than '6 steps'"
    refused(config(root, branch=f"{trunk}:6", duration="6 steps"), tmp_path / "none", match)


def test_another_warmup_is_refused_and_mended_as_advised(root, trunk, tmp_path):
    changes = {"branch": f"{trunk}:4", **SHORT}
    match = r"--config.optimizer.warmup='50 percent' is 4 steps, and that run had 2; give '2 steps'"
    refused(config(root, **changes, **{"optimizer.warmup": "50 percent"}), tmp_path / "run", match)
    same = config(root, **changes, **{"optimizer.warmup": "25 percent"})
    assert run(same, tmp_path / "run", console=QUIET, stop_after=5).step == 5


def test_a_run_of_another_schedule_is_refused_and_used_as_advised(root, trunk, tmp_path):
    shutil.copytree(trunk, tmp_path / "trunk")
    recorded = json.loads((trunk / "config.json").read_text())
    recorded["optimizer"]["schedule"] = "linear"
    (tmp_path / "trunk" / "config.json").write_text(json.dumps(recorded))
    branch = config(root, branch=f"{tmp_path / 'trunk'}:4", **SHORT)
    message = refused(branch, tmp_path / "run", "that run has schedule 'linear', .* only runs of wsd branch")
    assert f"--config.model.source={tmp_path / 'trunk'}:4 in place of --config.branch" in message
    advised = config(root, **SHORT, **{"model.source": f"{tmp_path / 'trunk'}:4", "evaluation.every": "0 steps"})
    assert run(advised, tmp_path / "run", console=QUIET, stop_after=1).step == 1


def test_other_fields_are_refused_by_name(root, trunk, tmp_path):
    changed = {"optimizer.learning_rate": 0.02, "seed": 1, "batch.sequences": 16}
    message = refused(config(root, branch=f"{trunk}:4", **SHORT, **changed), tmp_path / "run", "here differ")
    for name, there in {"optimizer.learning_rate": 0.01, "seed": 0, "batch.sequences": 8}.items():
        assert f"\n  {name}: {there} there, {changed[name]} asked for" in message
    assert message.count("\n  ") == 3


def test_other_data_are_refused(root, trunk, tmp_path):
    before = (root / "train.jsonl").read_bytes()
    try:
        tiny.write_rows(root / "train.jsonl", 48, seed=7)
        changes = {"branch": f"{trunk}:4", **SHORT, "data.fail_on": "never"}
        refused(config(root, **changes), tmp_path / "run", "trunk holds a run on other inputs: train changed")
    finally:
        (root / "train.jsonl").write_bytes(before)


@pytest.mark.parametrize(
    ("branch", "match"),
    [
        ("{trunk}", r"^--config.branch='.*trunk' must be a run directory and a step, like"),
        ("{trunk}:5", r"--config.branch=.*trunk:5: .*trunk has no checkpoint of step 5; there are \[4, 6\]"),
        ("{trunk}x:4", "trunkx is not the directory of a run"),
    ],
)
def test_a_branch_of_what_is_not_there(root, trunk, tmp_path, branch, match):
    refused(config(root, branch=branch.format(trunk=trunk), **SHORT), tmp_path / "run", match)


def test_a_branch_with_a_schedule_that_knows_its_length(root, trunk, tmp_path):
    changes = {"branch": f"{trunk}:4", "optimizer.schedule": "cosine", "optimizer.decay": "20 percent"}
    match = "give --config.optimizer.schedule=wsd"
    refused(config(root, **changes), tmp_path / "run", match)
