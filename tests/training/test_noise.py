"""Noise on embeddings: its size, whose it is, and that only training has it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.runs.metric_log import read_metrics
from sft_jax.training import run
from sft_jax.training.noise import embedding_noise
from tests import tiny

SEGMENTS = jnp.asarray([[1, 1, 1, 1, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]])


def noise(segments=SEGMENTS, seed=0, alpha=5.0, width=64):
    keys = jax.random.split(jax.random.key(seed), segments.shape[0])
    return np.asarray(embedding_noise(keys, segments, width, jnp.float32(alpha)))


def test_its_size_is_that_of_the_example_not_of_the_row():
    """alpha / sqrt(L D): L is 4, 2 and 8, D is 64."""
    found = noise()
    for rows, length in ((found[0, :4], 4), (found[0, 4:6], 2), (found[1], 8)):
        bound = 5 / np.sqrt(length * 64)
        assert 0.9 * bound < np.abs(rows).max() <= bound
        assert abs(rows.mean()) < 0.15 * bound
    np.testing.assert_array_equal(found[0, 6:], 0.0)


def test_a_row_has_its_own_whatever_the_batch():
    keys = jax.random.split(jax.random.key(0), 2)
    alone = embedding_noise(keys[1:], SEGMENTS[1:], 64, jnp.float32(5))
    np.testing.assert_array_equal(alone[0], noise()[1])
    assert np.abs(noise()[0, :4] - noise()[1, :4]).max() > 0.1


def losses(tmp_path, name, **changes):
    run(tiny.config(tmp_path, duration="2 steps", **changes), tmp_path / name)
    lines = read_metrics(tmp_path / name / "metrics.jsonl")
    return [line["train/loss"] for line in lines if "train/loss" in line], lines[0]["held_out/loss"]


@pytest.mark.slow
def test_only_training_has_it_and_micro_batches_do_not_change_it(tmp_path):
    plain, held_out = losses(tmp_path, "plain")
    noisy, noisy_held_out = losses(tmp_path, "noisy", **{"objective.neftune_alpha": 15.0})
    mesh = {"mesh.fsdp": 2, "mesh.tensor": 4}
    split = {"objective.neftune_alpha": 15.0, "batch.micro_batches": 4, **mesh}
    in_parts, _ = losses(tmp_path, "parts", **split)
    assert noisy_held_out == held_out
    assert abs(noisy[0] - plain[0]) > 1e-3
    np.testing.assert_allclose(in_parts, noisy, rtol=1e-5)
