"""Distillation: its numbers are those of its definition, and do not depend on the machine."""

import dataclasses
import functools

import numpy as np
import pytest

from sft_jax.objectives import DIVERGENCES
from tests import distillation
from tests.training.rollouts.test_on_any_machine import assert_same
from tests.training.test_invariance import ALL_AT_ONCE, REFERENCE, batch_of, measure, mesh

NUMBERS = {"objective.temperature": 1.5, "objective.cross_entropy_share": 0.3}
SHARE = {"objective.name": "jensen_shannon", "objective.teacher_share": 0.3}
ALL = 320  # tokens that both know: there is no rest
CASES = {
    "fsdp 4, tensor 2": mesh(1, 4, 2),
    "replica 2, fsdp 2, tensor 2": mesh(2, 2, 2),
    "2 micro-batches": {"batch.micro_batches": 2},
    "4 micro-batches": {"batch.micro_batches": 4},
    "unpacked": {"data.packing": "none"},
    "unrolled": {"execution.layer_layout": "unrolled"},
    "remat full": {"execution.remat": "full"},
    "chunked head": {"objective.head_chunk_tokens": 40},  # 5 slots of a row at a time: the last chunk is padded
    "head on all positions": {"objective.positions": "all"},
    "all at once": ALL_AT_ONCE,
    "context 4, all at once": ALL_AT_ONCE | mesh(fsdp=2, context=4),
    "context 2, chunked head": mesh(fsdp=2, context=2, tensor=2) | {"objective.head_chunk_tokens": 40},
}
OFTEN = ("4 micro-batches", "unpacked", "all at once")
EVERY = [case if case in OFTEN else pytest.param(case, marks=pytest.mark.slow) for case in CASES]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("distillation")


def built(root, arg="full", top_k=0, **overrides):
    made = {**REFERENCE, **NUMBERS, **SHARE, "teacher.top_k": top_k, "data.sequence_length": 192}
    return distillation.build(distillation.config(root, arg, **(made | overrides)), root / "cache")


def measured(root, *how, **overrides):
    found = built(root, *how, **overrides)
    return measure(found, batch_of(found))


@pytest.fixture(scope="module")
def reference(root):
    return functools.cache(functools.partial(measured, root))


@pytest.mark.parametrize("top_k", [0, 8])
@pytest.mark.parametrize("case", EVERY)
def test_full_fine_tuning(root, reference, case, top_k):
    assert_same(measured(root, "full", top_k, **CASES[case]), reference("full", top_k))


@pytest.mark.slow
@pytest.mark.parametrize("top_k", [0, 8])
@pytest.mark.parametrize("case", ["4 micro-batches", "all at once", "context 4, all at once"])
def test_adapters(root, reference, case, top_k):
    found = measured(root, "lora", top_k, **CASES[case])
    assert all(path.startswith("adapters/") for path in found[1])
    assert_same(found, reference("lora", top_k))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_all_tokens_on_disk_are_the_teacher_in_the_step(root, name):
    """Its weights are not in the state, and the numbers are the same."""
    named = {"objective.name": name} | ({} if name == "jensen_shannon" else {"objective.teacher_share": 0.5})
    in_step, on_disk = (built(root, "full", top_k, **named) for top_k in (0, ALL))
    assert in_step.state.teacher["params"]["head"].shape == (64, 336)
    assert on_disk.state.teacher == {}
    assert batch_of(on_disk)["teacher_log_probabilities"].shape[-1] == ALL
    expected = measure(in_step, batch_of(in_step))
    assert_same(measure(on_disk, batch_of(on_disk)), expected)
    mean = {key: total / count for key, (total, count) in expected[0].items()}
    assert mean["loss"] == pytest.approx(0.7 * mean["divergence"] + 0.3 * mean["nll"], rel=1e-6)
    assert mean["divergence"] > 0.1


def test_fewer_tokens_are_a_lower_bound(reference):
    of_all, of_some = (reference("full", top_k)[0]["divergence"][0] for top_k in (0, 8))
    assert 0.05 * of_all < of_some < 0.95 * of_all


def test_the_losses_of_slices_add_up(root):
    for top_k in (0, 8):
        made = built(root, "full", top_k)
        batch = batch_of(made)
        batch["slices"] = np.random.default_rng(0).integers(0, 2, batch["targets"].shape).astype(np.int32)
        sliced = dataclasses.replace(made, settings=dataclasses.replace(made.settings, slices=2))
        metrics, _ = measure(sliced, batch)
        sums, counts = metrics["loss_by_slice"]
        assert (counts > 50).all()
        np.testing.assert_allclose([sums.sum(), counts.sum()], metrics["loss"], rtol=1e-5)


def test_the_comparison_can_fail(root, reference):
    """A teacher that is one token late is another teacher."""
    made = built(root, "full", 8)
    batch = batch_of(made)
    for name in ("teacher_ids", "teacher_log_probabilities"):
        batch[name] = np.roll(batch[name], 1, axis=1)
    with pytest.raises(AssertionError):
        assert_same(measure(made, batch), reference("full", 8))
