"""Sampled answers: the numbers do not depend on the machine, nor on how answers lie in sequences."""

import dataclasses
import functools

import numpy as np
import pytest

from sft_jax.data.groups import Sampled, Shape, group_batch
from sft_jax.options import options_of
from sft_jax.runs.base import open_base
from sft_jax.training.memory import BatchSizes, step_program
from sft_jax.training.stacked.fields import NotStackableError, refuse_what_cannot_be_stacked
from tests import tiny
from tests.training import test_invariance as invariance
from tests.training.test_invariance import OF_ANSWERS, measure

GROUP, LONGEST = 4, 12
POLICY = {
    "objective.name": "policy_gradient",
    "objective.kl_weight": 0.05,
    "rollouts.temperature": 0.7,
    "data.masking.train_on": "last",
    "checkpoint.best_metric": "",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    made = tmp_path_factory.mktemp("groups")
    tiny.config(made / "full")
    tiny.write_checkpoint(made / "lora" / "model", num_hidden_layers=2, tie_word_embeddings=False)
    tiny.write_rows(made / "lora" / "train.jsonl", 16)
    tiny.write_rows(made / "lora" / "held_out.jsonl", 4, seed=1)
    return made


def build(root, arg="full", **overrides):
    return invariance.build(root, arg, **(POLICY | overrides))


def batch_of(built, targets=GROUP * LONGEST, length=160, **changes):
    """Answers of varied length to eight prompts, some of them left out, drawn by a policy a little off this one."""
    rng = np.random.default_rng(0)
    shape = Shape(GROUP, LONGEST, 16, length, targets, packing=built.config.data.packing)
    prompts = [rng.integers(3, 300, size).astype(np.int32) for size in (20, 9, 33, 14, 25, 40, 11, 18)]

    def answer():
        size = int(rng.integers(1, LONGEST + 1))
        drawn = rng.uniform(-7, -4, size).astype(np.float32)
        return Sampled(rng.integers(3, 300, size).astype(np.int32), drawn, float(rng.normal()))

    groups = [[answer() for _ in range(GROUP)] for _ in prompts]
    groups[2][1] = groups[5][0] = groups[5][3] = None
    shape = dataclasses.replace(shape, **changes)
    return group_batch(prompts, groups, shape, built.config.objective.normalize, range(shape.sequences))


def assert_same(found, expected):
    """Metrics and gradients, relative to 1e-5; the loss, in which answers cancel, relative to its parts."""
    (metrics, gradient), (expected_metrics, expected_gradient) = found, expected
    assert metrics.keys() == expected_metrics.keys()
    for name, pair in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], pair, rtol=1e-5, err_msg=name)
    assert gradient.keys() == expected_gradient.keys()
    for path, leaf in expected_gradient.items():
        norm = np.linalg.norm(leaf)
        assert norm > 1e-4, f"{path}: this gradient shows nothing"
        assert np.linalg.norm(gradient[path] - leaf) <= 1e-5 * norm, path


BY_KERNELS = ("splash attention", "triton attention")
# Of the head 7 slots of a row at a time: the last chunk is padded.
CASES = OF_ANSWERS | {
    "chunked head": {"objective.head_chunk_tokens": 112},
    **{name: {"execution.attention": name.split()[0]} for name in BY_KERNELS},
}
# Parts of a group in sequences, and so in micro-batches, of their own, with the prompt before each.
SPLIT = {"two answers a sequence": {"targets": 2 * LONGEST}, "packed": {"targets": 8 * LONGEST, "length": 300}}


@pytest.fixture(scope="module")
def expected(root):
    @functools.cache
    def measured(arg, **overrides):
        built = build(root, arg, **({"batch.sequences": 16} | overrides))
        return measure(built, batch_of(built))

    return measured


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case in BY_KERNELS else ()) for case in CASES]
)
def test_all_weights(root, expected, case):
    built = build(root, **({"batch.sequences": 16} | CASES[case]))
    assert_same(measure(built, batch_of(built)), expected("full"))


@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("case", SPLIT)
def test_groups_in_parts(root, expected, case, micro_batches):
    built = build(root, **{"batch.sequences": 16, "batch.micro_batches": micro_batches})
    batch = batch_of(built, **SPLIT[case])
    whole = batch_of(built)
    if case == "two answers a sequence":
        assert (batch["segment_ids"] > 0).sum() > 1.2 * (whole["segment_ids"] > 0).sum()
    else:
        assert (batch["segment_ids"] > 0).any(axis=1).sum() < (whole["segment_ids"] > 0).any(axis=1).sum()
    assert_same(measure(built, batch), expected("full"))


@pytest.mark.parametrize("normalize", ["examples", "constant"])
def test_normalised_otherwise(root, expected, normalize):
    options = {"objective.normalize": normalize}
    built = build(root, **{"batch.sequences": 16, "batch.micro_batches": 4}, **options)
    found = measure(built, batch_of(built, 2 * LONGEST))
    assert_same(found, expected("full", **options))
    assert found[0]["loss"][1] == 8 * GROUP - 3


@pytest.mark.slow
@pytest.mark.parametrize("case", ["fsdp 8", "4 micro-batches", "chunked head", "all at once"])
def test_adapters(root, expected, case):
    built = build(root, "lora", **({"batch.sequences": 16} | CASES[case]))
    assert_same(measure(built, batch_of(built)), expected("lora"))


def test_the_step_that_is_planned_has_the_arrays_of_a_run(root):
    built = build(root, **{"batch.sequences": 16})
    options, decoder = options_of(built.config), open_base(built.config.model.source).decoder
    planned = step_program(options, decoder, BatchSizes(160, GROUP * LONGEST), built.mesh).batch
    kinds = lambda batch: {name: (array.shape, array.dtype) for name, array in batch.items()}
    assert kinds(planned) == kinds(batch_of(built))


def test_several_runs_do_not_train_in_one_program(root):
    configs = [build(root, seed=seed).config for seed in (0, 1)]
    with pytest.raises(NotStackableError, match=r"policy_gradient': a run that samples its answers is trained by itse"):
        refuse_what_cannot_be_stacked(configs)
