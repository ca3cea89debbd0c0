"""A run that is killed, also while it samples, goes on with the same answers, losses and weights, bit for bit."""

import signal

import jax
import numpy as np
import pytest

from sft_jax.training import run
from sft_jax.training.rollouts.rollout import _identities, seed_of_step
from tests import rollouts
from tests.training import moments
from tests.training.test_resume import history

STEPS = 5
OVERRIDES = {
    "duration": f"{STEPS} steps",
    "rollouts.temperature": 0.8,
    "checkpoint.every": "2 steps",
    "rollouts.prompts": 8,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("killed")


def found_in(workdir):
    return history(workdir) | {"samples": rollouts.samples_of(workdir)}


@pytest.fixture(scope="module")
def uninterrupted(root):
    run(rollouts.config(root, **OVERRIDES), root / "uninterrupted")
    return found_in(root / "uninterrupted")


KILLS = [("in sampling", 1), ("sampled", 2), ("in sampling", 4), ("dispatch", 4), ("saved", 4), ("in sampling", 5)]


@pytest.mark.slow
@pytest.mark.parametrize("kills", [KILLS[:3], KILLS[3:]])
def test_killed(root, uninterrupted, kills, children):
    """Again and again in one directory, which then has what one that was never killed has."""
    workdir = root / f"killed {kills[0][0]}"
    for moment, step in kills:
        spec = {"config": "tests.rollouts:config", "root": str(root), "workdir": str(workdir), "overrides": OVERRIDES}
        (end,) = children.run([("tests.training.driver:train", spec | {"moment": moment, "step": step})])
        assert end.status == -signal.SIGKILL, end.output[-3000:]
    run(rollouts.config(root, **OVERRIDES), workdir)
    found = found_in(workdir)
    assert found["lines"] == uninterrupted["lines"]
    assert found["samples"] == uninterrupted["samples"]
    for leaf, other in zip(jax.tree.leaves(found["arrays"]), jax.tree.leaves(uninterrupted["arrays"]), strict=True):
        np.testing.assert_array_equal(leaf, other)


def test_interrupted_while_it_samples(root, uninterrupted):
    """By an error in this process; the answers of the step that was not taken are drawn again."""
    workdir = root / "interrupted"

    class Stop(Exception):
        pass

    def stop():
        raise Stop

    for moment, step in (("in sampling", 3), ("sampled", 4)):
        with pytest.MonkeyPatch.context() as patch:
            moments.at(moment, step, stop, patch.setattr)
            with pytest.raises(Stop):
                run(rollouts.config(root, **OVERRIDES), workdir)
    assert "000004.jsonl" in rollouts.samples_of(workdir)
    run(rollouts.config(root, **OVERRIDES), workdir)
    found = found_in(workdir)
    assert found["lines"] == uninterrupted["lines"]
    assert found["samples"] == uninterrupted["samples"]


def test_answers_differ(uninterrupted):
    """From step to step, row to row, sample to sample; and a row that is asked twice gets other answers."""
    answers = [tuple(one["tokens"]) for of_step in uninterrupted["samples"].values() for one in of_step]
    assert len(set(answers)) > 0.9 * len(answers)


def test_seeds():
    assert len({seed_of_step(seed, step) for seed in range(20) for step in range(20)}) == 400
    assert all(0 <= seed_of_step(2**40, step) < 2**31 for step in range(20))
    assert _identities([5, 3, 5, 5], 100) == [5, 3, 105, 205]
