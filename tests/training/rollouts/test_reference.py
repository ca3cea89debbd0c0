"""What a policy is kept near is what its run began with: the weights, and an adapter where there was one."""

import jax
import numpy as np
import pytest

from sft_jax.training import run
from tests import rollouts, tiny
from tests.training.test_initial_adapter import made_by_peft

ONE = {f"mesh.{axis}": 1 for axis in ("replica", "fsdp", "expert", "context", "tensor")}
KEPT = {"objective.kl_weight": 0.5, "duration": "3 steps", "optimizer.warmup": "0 steps", **ONE}


def kl_of(config, workdir):
    run(config, workdir, devices=jax.devices()[:1])
    return np.array([line["train/kl"] for line in rollouts.lines_of(workdir) if "train/kl" in line])


def test_all_weights(tmp_path):
    found = kl_of(rollouts.config(tmp_path, **KEPT), tmp_path / "run")
    assert abs(found[0]) < 1e-6 < found[1] < found[2]


def test_an_adapter_to_begin_with_is_part_of_it(tmp_path):
    """With the base in its place the divergence would not begin at 0."""
    made_by_peft(tmp_path)
    initial = {"adapter.initial": str(tmp_path / "adapter"), "adapter.rank": 16, "adapter.alpha": 32.0}
    found = kl_of(rollouts.config(tmp_path, "lora", **KEPT, **initial), tmp_path / "run")
    assert abs(found[0]) < 1e-6 < found[1]
    # The adapter is far from nothing: of a model that it is merged into, the run begins with other answers.
    plain = rollouts.config(tmp_path, "lora", **KEPT)
    kl_of(plain, tmp_path / "plain")
    first = lambda name: [one["tokens"] for one in rollouts.samples_of(tmp_path / name)["000001.jsonl"]]
    assert first("run") != first("plain")


def test_a_run_that_goes_on_keeps_it(tmp_path):
    """It is no part of a checkpoint, and made again of what the run began with."""
    config = rollouts.config(tmp_path, **KEPT, **{"checkpoint.every": "1 steps"})
    expected = kl_of(config, tmp_path / "whole")
    run(config, tmp_path / "paused", devices=jax.devices()[:1], stop_after=2)
    np.testing.assert_array_equal(kl_of(config, tmp_path / "paused"), expected)


def test_it_holds_the_policy_back(tmp_path):
    free = kl_of(rollouts.config(tmp_path, **KEPT | {"objective.kl_weight": 1e-6}), tmp_path / "free")
    held = kl_of(rollouts.config(tmp_path, **KEPT | {"objective.kl_weight": 20.0}), tmp_path / "held")
    assert held[-1] < free[-1]


@pytest.mark.parametrize("name", ["dora", "pissa"])
@pytest.mark.slow
def test_other_adapters(name, tmp_path):
    tiny.config(tmp_path)
    found = kl_of(rollouts.config(tmp_path, "lora", **KEPT | {"adapter.method": name}), tmp_path / "run")
    assert abs(found[0]) < 1e-5 < found[1]
