"""Moments in 8 bits: the numbers they are rounded to, how far training is from float32's, and their size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.runs.metric_log import read_metrics
from sft_jax.training import run
from sft_jax.training.eight_bit import BLOCK, dynamic_tree, scale_by_adam
from tests import tiny


def test_the_numbers_of_a_code():
    """Dettmers et al. 2022: seven decades, of which each is divided twice as finely as the one below."""
    for signed, lowest in ((True, 0.55e-6), (False, 0.325e-6)):
        values = dynamic_tree(signed=signed)
        assert len(np.unique(values)) == 256
        assert (values.max(), values.min() < -0.9) == (1.0, signed)
        assert values[values > 0].min() == pytest.approx(lowest)
        counts = [np.sum((values > 10.0**k) & (values < 10.0 ** (k + 1))) for k in range(-7, 0)]
        assert counts == [(1 if signed else 2) * 2**k for k in range(7)]


@pytest.mark.parametrize("shape", [(600, 40), (40, 600), (3, 70, 90), (70000,)])
def test_moments_are_within_the_rounding_of_their_block(shape):
    """One update from zero: the direction is the gradient's sign, as it is before anything is rounded."""
    path = {"params": {"layers": {"ffn": {"up": {"kernel": 0}}}}} if len(shape) == 3 else {"params": {"w": 0}}
    gradient = jax.tree.map(lambda _: jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32), path)
    rule = scale_by_adam(jnp.float32(0.9), jnp.float32(0.95), jnp.float32(1e-8))
    direction, state = rule.update(gradient, rule.init(gradient))
    (leaf,), (sign,), (codes,) = (jax.tree.leaves(tree) for tree in (gradient, direction, state.mu))
    np.testing.assert_allclose(sign, jnp.sign(leaf), atol=1e-3)
    assert codes.dtype == jnp.uint8
    again = np.asarray(jax.tree.leaves(rule.update(gradient, state)[0])[0])
    assert (np.abs(again - np.sign(leaf)) < 0.1).mean() > 0.99
    assert np.abs(again).max() < 1.5  # what is rounded up at the lower end makes smaller steps, not larger ones
    length = max(shape[-2:])
    assert jax.tree.leaves(state.mu_scale)[0].size == leaf.size // length * -(-length // BLOCK)


def test_a_second_moment_is_not_rounded_to_nothing():
    """A gradient of 1e-6 of the largest of its block, then none: its step must not become first / epsilon."""
    gradient = {"params": {"w": jnp.ones((64, 256)).at[:, 0].set(1e-6)}}
    rule = scale_by_adam(jnp.float32(0.9), jnp.float32(0.95), jnp.float32(1e-30))
    _, state = rule.update(gradient, rule.init(gradient))
    direction, _ = rule.update(jax.tree.map(jnp.zeros_like, gradient), state)
    assert np.abs(direction["params"]["w"]).max() < 2


def losses(root, name, rule):
    config = tiny.config(root, duration="100 steps", **{"optimizer.name": rule, "optimizer.learning_rate": 3e-3})
    with config.unlocked():
        config.data.held_out, config.checkpoint.best_metric = "", ""
        config.evaluation.every = config.checkpoint.every = "0 steps"
    kept = {}
    run(config, root / name, evaluators={"keep": lambda model, state: kept.update(state=state) or {}})
    lines = read_metrics(root / name / "metrics.jsonl")
    return np.asarray([line["train/loss"] for line in lines if "train/loss" in line]), kept["state"].opt_state


@pytest.mark.slow
def test_training_follows_float32(tmp_path):
    """100 steps on matrices of 9,216 to 30,720 entries: the loss stays within 0.05 of float32's, and falls by over 2;
    the moments take less than 0.3 of the memory."""
    sizes = {"hidden_size": 96, "intermediate_size": 160, "head_dim": 24, "num_hidden_layers": 1}
    tiny.write_checkpoint(tmp_path / "model", **sizes)
    tiny.write_rows(tmp_path / "train.jsonl", 48)
    exact, whole = losses(tmp_path, "exact", "adamw")
    ours, small = losses(tmp_path, "ours", "adam8bit")
    assert exact[0] - exact[-1] > 2
    assert np.abs(ours - exact).max() < 0.05
    bytes_of = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    assert bytes_of(small) < 0.3 * bytes_of(whole)
