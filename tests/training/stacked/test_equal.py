"""Runs in one program are what they are by themselves: figures, weights, and what is in their directories."""

import re

import numpy as np
import pytest

import tests.training.poison  # noqa: F401  registers its objectives
from sft_jax.runs.result import read_result
from sft_jax.training.stacked import loop
from tests import tiny
from tests.training.stacked.together import (
    alone,
    assert_same_history,
    assert_same_weights,
    lines_of,
    stacked,
    trained_of,
)

pytestmark = pytest.mark.slow

FOUR = (  # all that differs is data of the step
    {"seed": 0, "optimizer.learning_rate": 1e-2},
    {"seed": 1, "optimizer.learning_rate": 3e-3, "adapter.alpha": 16.0, "optimizer.weight_decay": 0.1},
    {"seed": 2, "optimizer.warmup": "5 steps", "optimizer.betas": (0.8, 0.99), "objective.label_smoothing": 0.1},
    {"seed": 3, "optimizer.clip_norm": 0.1, "optimizer.final_share": 0.5, "adapter.scaling": "sqrt_rank"},
)
# Where moments are near 0, Adam's ratio makes much of the last bit of a gradient: the constant in it is above that.
CALM = {"optimizer.epsilon": 1e-6}
LONG = CALM | {"duration": "20 steps", "evaluation.every": "10 steps", "checkpoint.every": "10 steps"}
SHORT = CALM | {"duration": "4 steps", "evaluation.every": "4 steps"}


def configs_of(root, changes, common, arg="lora"):
    return [tiny.config(root, arg, **{**common, **change}) for change in changes]


def assert_same_runs(configs, root, **tolerances):
    """Trains them both ways; directories of those in one program."""
    single = alone(configs, root)
    together, ends = stacked(configs, root)
    assert [(end.state, end.error) for end in ends] == [("finished", None)] * len(configs)
    for ours, theirs in zip(together, single, strict=True):
        assert_same_history(ours, theirs, **tolerances)
        assert_same_weights(ours, theirs, **tolerances)
    return together


MESHES = {
    "fsdp": {},
    "cube": {"mesh.fsdp": 2, "mesh.tensor": 2, "mesh.replica": 2},
    "context": {"mesh.fsdp": 2, "mesh.context": 4},
}


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
def test_four_runs_of_twenty_steps(mesh, tmp_path):
    """Over eight devices: every logged figure and every trained array, relative 1e-5, in float32."""
    configs = configs_of(tmp_path, FOUR, LONG | mesh)
    for number, workdir in enumerate(assert_same_runs(configs, tmp_path)):
        ours, theirs = read_result(workdir), read_result(tmp_path / f"alone {number}")
        assert (ours.step, ours.total_steps, ours.counters) == (theirs.step, theirs.total_steps, theirs.counters)
        assert ours.best["step"] == theirs.best["step"]
        other = tmp_path / f"alone {number}"
        assert files_of(workdir) == files_of(other)
        assert (workdir / "config.json").read_text() == (other / "config.json").read_text()


def files_of(workdir):
    """The names in a directory; event files without the time at which they were begun."""
    return sorted(re.sub(r"tfevents\.\d+", "tfevents", path.name) for path in workdir.iterdir())


@pytest.mark.parametrize("method", ["lora", "dora", "pissa"])
def test_ranks_by_masking(method, tmp_path):
    """Each run has adapters of its own rank, in which nothing tells of the wider ones beside them."""
    changes = (
        {"adapter.rank": 4},
        {"adapter.rank": 2, "adapter.alpha": 3.0, "seed": 1},
        {"adapter.rank": 2, "adapter.ranks": ("attention/query=8",), "adapter.scaling": "sqrt_rank"},
    )
    workdirs = assert_same_runs(configs_of(tmp_path, changes, SHORT | {"adapter.method": method}), tmp_path)
    query = [trained_of(workdir)["adapters/layers_0/attention/query/a"].shape for workdir in workdirs]
    assert query == [(32, 4), (32, 2), (32, 8)]


@pytest.mark.parametrize("layout", ["scan", "auto"])
def test_what_is_drawn_is_drawn_as_by_itself(layout, tmp_path):
    """Dropout, noise and the order of rows follow from a run's own seed; at 0 nothing is left out or added."""
    changes = (
        {"seed": 5, "adapter.dropout": 0.3, "objective.neftune_alpha": 5.0},
        {"seed": 6, "adapter.dropout": 0.1, "objective.z_loss": 1e-3},
        {"seed": 5},
    )
    configs = configs_of(tmp_path, changes, SHORT | {"execution.layer_layout": layout, "optimizer.epsilon": 1e-4})
    assert_same_runs(configs, tmp_path)


@pytest.mark.parametrize(
    ("arg", "common"),
    [
        ("lora", {"batch.micro_batches": 2, "mesh.fsdp": 2, "mesh.replica": 1, "mesh.tensor": 4, "ema.decay": 0.5}),
        ("lora", {"optimizer.name": "schedule_free", "optimizer.schedule": "constant", "objective.kl_to_base": 0.1}),
        ("lora", {"precision.quantized": "int8", "adapter.targets": ("attention/query", "embedding")}),
        (
            "lora",
            {
                "model.new_tokens": ("<|x|>",),
                "adapter.train_new_tokens": True,
                "data.packing": "none",
                "optimizer.epsilon": 1e-4,  # of few tokens a step, gradients are small enough for Adam to show rounding
            },
        ),
        ("full", {"objective.kl_to_base": 0.1}),
        ("full", {"trained.last_layers": 1, "optimizer.name": "muon"}),
    ],
    ids=["micro", "schedule_free", "int8", "new_tokens", "full", "last_layers"],
)
def test_other_programs(arg, common, tmp_path):
    """Whatever a run's step is, that of several is the same; without adapters each has weights of its own."""
    changes = ({"seed": 1}, {"optimizer.learning_rate": 2e-3})
    assert_same_runs(configs_of(tmp_path, changes, SHORT | common, arg), tmp_path, rtol=2e-5)


def test_rows_of_their_own(tmp_path):
    """Runs on other rows have other numbers of slots for targets, epochs and steps in a program of one shape."""
    tiny.config(tmp_path)
    tiny.write_rows(tmp_path / "few.jsonl", 20, seed=3)
    changes = (
        {},
        {"data.train": str(tmp_path / "few.jsonl"), "data.supervised_quantile": 0.5, "duration": "2 epochs"},
    )
    workdirs = assert_same_runs(configs_of(tmp_path, changes, SHORT), tmp_path)
    steps = [read_result(workdir).step for workdir in workdirs]
    assert steps[0] == 4
    assert steps[1] not in (0, 4)


def test_what_is_not_finite_stays_in_its_run(tmp_path):
    """Steps are skipped where a run by itself skips them; one that skips too many ends, and the others go on."""
    common = SHORT | {
        "objective.name": "poisoned",
        "objective.head_chunk_tokens": 0,
        "optimizer.warmup": "0 steps",
        "optimizer.epsilon": 1e-4,
        "duration": "6 steps",
        "data.held_out": "",
        "data.sequence_length": 96,
        "checkpoint.best_metric": "",
    }
    patient = {"optimizer.max_skipped_in_a_row": 100}
    changes = (*({"seed": seed} | patient for seed in range(3)), {"seed": 1, "optimizer.max_skipped_in_a_row": 1})
    configs = configs_of(tmp_path, changes, common)
    single = alone(configs[:3], tmp_path)
    together, ends = stacked(configs, tmp_path)
    assert [end.state for end in ends] == ["finished"] * 3 + ["diverged"]
    skipped = [[line["step"] for line in lines_of(workdir) if line["train/skipped"]] for workdir in together]
    assert skipped[3] == skipped[1][:1]
    assert ends[3].step == skipped[1][0]
    assert len({tuple(steps) for steps in skipped}) > 1
    for ours, theirs in zip(together[:3], single, strict=True):
        assert all(np.isfinite(leaf).all() for leaf in trained_of(ours).values())
        assert_same_weights(ours, theirs, rtol=1e-4)
        assert (ours / "skipped_steps.jsonl").read_text() == (theirs / "skipped_steps.jsonl").read_text()


@pytest.mark.parametrize("smaller_from", [100, 1])
def test_runs_that_end_before_the_others(smaller_from, tmp_path, monkeypatch):
    """By their duration, or early; the lanes that are left go on in place, or in a smaller program."""
    monkeypatch.setattr(loop, "SMALLER_FROM_STEPS", smaller_from)
    common = CALM | {"evaluation.every": "2 steps", "checkpoint.every": "2 steps"}
    changes = (
        {"duration": "2 steps"},
        {"duration": "7 steps", "seed": 1},
        {"duration": "7 steps", "evaluation.patience": 1, "checkpoint.best_is": "max", "adapter.rank": 8},
    )
    configs = configs_of(tmp_path, changes, common)
    single = alone(configs, tmp_path)
    together, ends = stacked(configs, tmp_path)
    assert [(end.state, end.step) for end in ends] == [("finished", 2), ("finished", 7), ("stopped_early", 2)]
    for ours, theirs in zip(together, single, strict=True):
        assert_same_history(ours, theirs)
        assert_same_weights(ours, theirs)
    ends = stacked(configs, tmp_path)[1]
    assert [end.state for end in ends] == ["finished", "finished", "stopped_early"]


def test_groups_of_the_same_shape_share_programs(tmp_path):
    """The second group compiles nothing, and within a group all evaluations are one program."""
    from tests.training.test_programs import compilations

    make = lambda first: configs_of(tmp_path, [{"seed": first}, {"seed": first + 1}], SHORT)
    stacked(make(0), tmp_path, "first")
    with compilations() as seen:
        stacked(make(2), tmp_path, "second")
    assert not seen
