"""Runs in one program that are killed, interrupted, or trained by turns together and each by itself."""

import os
import signal

import pytest
from etils import epath

from sft_jax.runs.checkpoints import Checkpoints
from sft_jax.runs.result import read_result
from sft_jax.training import run
from sft_jax.training.stacked import run_stacked
from tests import tiny
from tests.training import moments
from tests.training.stacked.together import alone, assert_same_history, assert_same_weights, lines_of, stacked

pytestmark = pytest.mark.slow

COMMON = {
    "duration": "6 steps",
    "evaluation.every": "2 steps",
    "checkpoint.every": "2 steps",
    "optimizer.epsilon": 1e-6,
}
CHANGES = ({"seed": 1}, {"seed": 2, "adapter.rank": 2, "adapter.dropout": 0.2})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("stacked")


def configs(root):
    return [tiny.config(root, "lora", **COMMON, **changes) for changes in CHANGES]


@pytest.fixture(scope="module")
def whole(root):
    """Directories of the runs that nothing interrupted."""
    return stacked(configs(root), root, "whole")[0]


def steps_saved(workdir):
    checkpoints = Checkpoints(epath.Path(workdir), read_only=True)
    try:
        return checkpoints.latest()
    finally:
        checkpoints.close()


def test_killed_between_two_checkpoints_of_a_step(root, whole, children):
    """One run has saved step 4 and the other has not: each goes on from its own, and all is as if nothing had been."""
    workdirs = [root / f"killed {number}" for number in range(2)]
    spec = {"root": str(root), "arg": "lora", "workdirs": list(map(str, workdirs)), "moment": "saved", "step": 4}
    spec["stacked"] = [{**COMMON, **changes} for changes in CHANGES]
    (end,) = children.run([("tests.training.driver:train", spec)])
    assert end.status == -signal.SIGKILL, end.output
    assert list(map(steps_saved, workdirs)) == [4, 2]
    ends = run_stacked(configs(root), workdirs)
    assert [(end.state, end.step) for end in ends] == [("finished", 6)] * 2
    for ours, theirs in zip(workdirs, whole, strict=True):
        assert lines_of(ours) == lines_of(theirs)
        assert_same_weights(ours, theirs, rtol=0)


def test_interrupted_together_and_finished_each_by_itself(root, whole):
    """A signal has all of them saved; a plain run goes on with any."""
    workdirs = [root / f"interrupted {number}" for number in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        save = Checkpoints.save

        def save_and_ask(self, step, *what):
            save(self, step, *what)
            if step == 2 and signalled:
                os.kill(os.getpid(), signalled.pop())

        signalled = [signal.SIGTERM]
        patch.setattr(Checkpoints, "save", save_and_ask)
        ends = run_stacked(configs(root), workdirs)
    assert [(end.state, end.step, end.done) for end in ends] == [("interrupted", 3, False)] * 2
    assert [read_result(workdir).state for workdir in workdirs] == ["interrupted"] * 2
    for config, ours, theirs in zip(configs(root), workdirs, whole, strict=True):
        assert run(config, ours).step == 6
        assert_same_history(ours, theirs)
        assert_same_weights(ours, theirs)


def test_begun_each_by_itself_and_finished_together(root, whole):
    """One is at step 4, the other not begun, and a third is finished."""
    made = configs(root)
    with pytest.MonkeyPatch.context() as patch:
        moments.at("dispatch", 4, lambda: os.kill(os.getpid(), signal.SIGTERM), patch.setattr)
        (begun,) = alone(made[:1], root, "begun")
    assert steps_saved(begun) == 4
    workdirs = [begun, root / "new 1", whole[0]]
    before = (whole[0] / "result.json").read_text()
    ends = run_stacked([*made, made[0]], workdirs)
    assert [(end.state, end.step) for end in ends] == [("finished", 6)] * 3
    assert (whole[0] / "result.json").read_text() == before
    for ours, theirs in zip(workdirs[:2], whole, strict=True):
        assert_same_history(ours, theirs)
        assert_same_weights(ours, theirs)


def test_an_error_of_one_run_leaves_the_others_alone(root, whole):
    """Here its checkpoint cannot be written; it goes on from the one before."""
    workdirs = [root / f"full disk {number}" for number in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        save = Checkpoints.save

        def no_space(self, step, *what):
            if self._workdir == workdirs[1] and step == 4:
                raise OSError("no space left on device")
            save(self, step, *what)

        patch.setattr(Checkpoints, "save", no_space)
        ends = run_stacked(configs(root), workdirs)
    assert [(end.state, end.step) for end in ends] == [("finished", 6), ("failed", 4)]
    assert read_result(workdirs[1]).error == "OSError: no space left on device"
    assert lines_of(workdirs[0]) == lines_of(whole[0])
    assert [end.state for end in run_stacked(configs(root), workdirs)] == ["finished"] * 2
    assert_same_weights(workdirs[1], whole[1])
