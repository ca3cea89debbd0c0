"""The clipped objective against numbers worked out by hand, and its gradient against finite differences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.objectives import PolicySettings, get_objective, samples_groups
from sft_jax.objectives.policy_gradient import clipped, k3

CLIP = PolicySettings(0.2, 0.2)
CLIP_HIGHER = PolicySettings(0.2, 0.28)


@pytest.mark.parametrize(
    ("settings", "log_ratio", "advantage", "expected"),
    [
        (CLIP, 1.0, 1.0, -1.2),
        (CLIP, -1.0, 1.0, -0.367879),
        (CLIP, 0.1, 1.0, -1.105171),
        (CLIP, 1.0, -1.0, 2.718282),
        (CLIP, -1.0, -1.0, 0.8),
        (CLIP_HIGHER, 1.0, 1.0, -1.28),
    ],
)
def test_a_token(settings, log_ratio, advantage, expected):
    found = clipped(jnp.float32(log_ratio), jnp.float32(advantage), settings)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_divergence():
    policy, reference = jnp.array([-1.0, -0.5, -2.0]), jnp.array([-1.2, -0.3, -1.0])
    np.testing.assert_allclose(k3(policy, reference), [0.018731, 0.021403, 0.718282], atol=1e-5)


def arrays(answers, normalize, longest=3, width=0):
    """Answers [(losses or ratios a token, advantage)] one behind the other in a sequence, with their weights."""
    counts = [len(values) for values, _ in answers]
    weight = {"tokens": lambda count: 1.0, "examples": lambda count: 1 / count, "constant": lambda count: 1 / longest}
    flat = {
        "log_ratio": [value for values, _ in answers for value in values],
        "advantages": [advantage for values, advantage in answers for _ in values],
        "weights": [weight[normalize](count) for count in counts for _ in range(count)],
        "branches": [number for number, count in enumerate(counts, 1) for _ in range(count)],
    }
    empty = max(width - sum(counts), 0)
    return {name: np.array([values + [0] * empty], np.float32) for name, values in flat.items()}


def measured(answers, normalize, settings=CLIP, width=0, reference=None):
    made = arrays(answers, normalize, width=width)
    drawn = np.where(made["weights"] > 0, -1.5, 0.0).astype(np.float32)
    found = drawn + made["log_ratio"]
    settings = dataclasses.replace(settings, per_token=normalize == "tokens")
    rest = (jnp.asarray(made["advantages"]), reference, jnp.asarray(made["weights"]))
    branches = jnp.asarray(made["branches"], jnp.int32)
    metrics = get_objective("policy_gradient")(jnp.asarray(found), jnp.asarray(drawn), *rest, branches, settings)
    return {name: (float(total), float(count)) for name, (total, count) in metrics.items()}


def of_losses(losses, normalize):
    """The loss where tokens have these: an answer a token would weigh them otherwise, so they come as advantages."""
    rows = [arrays([([0.0] * len(values), 0.0)], normalize) for values in losses]
    totals, counts = [], []
    for values, row in zip(losses, rows, strict=True):
        rest = (-jnp.array([values]), None, jnp.asarray(row["weights"]), jnp.asarray(row["branches"], jnp.int32))
        zeros, settings = jnp.zeros((1, len(values))), dataclasses.replace(CLIP, per_token=normalize == "tokens")
        total, count = get_objective("policy_gradient")(zeros, zeros, *rest, settings)["loss"]
        totals.append(float(total))
        counts.append(float(count))
    return sum(totals) / sum(counts)


@pytest.mark.parametrize(("normalize", "expected"), [("tokens", 0.36), ("examples", 0.325), ("constant", 0.3)])
def test_normalised(normalize, expected):
    """Each answer in a micro-batch of its own."""
    np.testing.assert_allclose(of_losses([[0.1, 0.2], [0.4, 0.5, 0.6]], normalize), expected, atol=1e-5)


@pytest.mark.parametrize(("normalize", "expected"), [("examples", -2.25), ("tokens", -1.875)])
def test_answers_of_one_sequence(normalize, expected):
    total, count = measured([([0.0] * 3, 1.5), ([0.0], 3.0)], normalize, width=9)["loss"]
    np.testing.assert_allclose(total / count, expected, atol=1e-5)
    assert count == {"examples": 2, "tokens": 4}[normalize]


def test_what_is_logged():
    answers = [([1.0, -1.0, 0.1], 1.0), ([1.0, -1.0], -1.0)]
    found = measured(answers, "tokens", width=8)
    assert {name: count for name, (_, count) in found.items()} == dict.fromkeys(found, 5.0)
    totals = {name: total for name, (total, _) in found.items()}
    assert totals["clipped_high"] == totals["clipped_low"] == 1.0
    np.testing.assert_allclose(totals["sampler_gap"], 4.1, atol=1e-5)
    np.testing.assert_allclose(totals["entropy"], 5 * 1.5 - 0.1, atol=1e-5)
    expected = -1.2 - 0.367879 - 1.105171 + 2.718282 + 0.8
    np.testing.assert_allclose(totals["loss"], expected, atol=1e-5)


def test_the_reference_is_added():
    reference = jnp.full((1, 8), -1.7)
    with_kl = measured([([0.0] * 3, 1.0)], "tokens", PolicySettings(0.2, 0.2, 0.5), 8, reference)
    plain = measured([([0.0] * 3, 1.0)], "tokens", CLIP, 8)
    np.testing.assert_allclose(with_kl["kl"], (3 * 0.018731, 3.0), atol=1e-5)
    np.testing.assert_allclose(with_kl["loss"][0], plain["loss"][0] + 0.5 * with_kl["kl"][0], atol=1e-6)


@pytest.mark.parametrize("normalize", ["tokens", "examples", "constant"])
def test_gradients(normalize):
    """Against central differences, away from the bounds; a slot without weight has none, whatever stands there."""
    made = arrays([([0.5, -0.05, 0.1], 0.7), ([-0.4, 0.3], -1.1)], normalize, width=7)
    drawn = np.where(made["weights"] > 0, -1.5, 0.0)
    settings = PolicySettings(0.2, 0.28, 0.3, normalize == "tokens")
    reference = jnp.asarray(drawn + 0.2)

    def loss(values):
        rest = (jnp.asarray(made["advantages"]), reference, jnp.asarray(made["weights"]))
        metrics = get_objective("policy_gradient")(
            values, jnp.asarray(drawn), *rest, jnp.asarray(made["branches"], jnp.int32), settings
        )
        return metrics["loss"][0] / metrics["loss"][1]

    with jax.enable_x64(True):
        at = jnp.asarray((drawn + made["log_ratio"]).astype(np.float64)).at[0, 5:].set(jnp.array([jnp.inf, 90.0]))
        found = jax.grad(loss)(at)
        assert (found[0, 5:] == 0).all()
        for slot in range(5):
            step = jnp.zeros_like(at).at[0, slot].set(1e-6)
            expected = (loss(at + step) - loss(at - step)) / 2e-6
            np.testing.assert_allclose(found[0, slot], expected, rtol=1e-5, atol=1e-8)
        assert found[0, 0] != 0  # by the divergence alone: the token is beyond its bound


def test_names():
    assert samples_groups("policy_gradient")
    assert not samples_groups("dpo")
    assert not samples_groups("cross_entropy")
