"""Cross-entropy by hand and against torch; sums and counts that add up."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sft_jax.objectives import KNOWN, OBJECTIVES, Settings, cross_entropy, get_objective

LN3 = float(np.log(3.0))


def sums(logits, targets, weights, **settings):
    arrays = (jnp.asarray(logits, jnp.float32), jnp.asarray(targets, jnp.int32), jnp.asarray(weights, jnp.float32))
    metrics = cross_entropy(*arrays, Settings(**settings))
    return {name: (float(total), float(count)) for name, (total, count) in metrics.items()}


def random_case(sequences=3, length=5, vocab=7, seed=0):
    rng = np.random.default_rng(seed)
    logits = (2 * rng.standard_normal((sequences, length, vocab))).astype(np.float32)
    targets = rng.integers(0, vocab, (sequences, length)).astype(np.int32)
    weights = rng.choice([0.0, 0.5, 1.0, 2.0], (sequences, length)).astype(np.float32)
    return logits, targets, weights


@pytest.mark.parametrize(
    ("logits", "target", "weight", "nll", "accuracy"),
    [
        ([0, LN3], 1, 2, (2 * 0.28768, 2), (1, 1)),  # the docstring's: probabilities 1/4 and 3/4
        ([0, LN3], 0, 1, (1.38629, 1), (0, 1)),
        ([0, LN3], 0, 0, (0, 0), (0, 0)),
        ([5, 5, 5, 5], 2, 1, (1.38629, 1), (1, 1)),  # a tie for the first place counts
    ],
)
def test_by_hand(logits, target, weight, nll, accuracy):
    found = sums([[logits]], [[target]], [[weight]])
    np.testing.assert_allclose(found["nll"], nll, atol=1e-4)
    np.testing.assert_allclose(found["loss"], nll, atol=1e-4)
    assert found["accuracy"] == accuracy


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        ({"label_smoothing": 0.2}, 0.8 * 0.28768 + 0.2 * (1.38629 - LN3 / 2)),  # log Z = ln 4, mean logit ln(3) / 2
        ({"z_loss": 0.1}, 0.28768 + 0.1 * 1.38629**2),
    ],
)
def test_label_smoothing_and_z_loss_by_hand(settings, loss):
    found = sums([[[0, LN3]]], [[1]], [[1]], **settings)
    np.testing.assert_allclose(found["loss"], (loss, 1), atol=1e-4)
    np.testing.assert_allclose(found["nll"], (0.28768, 1), atol=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_value_and_gradient_equal_torch(smoothing, z_loss):
    logits, targets, weights = random_case()

    def ours(logits):
        return cross_entropy(
            logits, jnp.asarray(targets), jnp.asarray(weights), Settings(label_smoothing=smoothing, z_loss=z_loss)
        )["loss"][0]

    value, gradient = jax.value_and_grad(ours)(jnp.asarray(logits))
    wide = torch.from_numpy(logits).requires_grad_()
    each = torch.nn.functional.cross_entropy(
        wide.flatten(0, 1), torch.from_numpy(targets).long().flatten(), reduction="none", label_smoothing=smoothing
    )
    each = each + z_loss * torch.logsumexp(wide, -1).flatten() ** 2
    expected = (each * torch.from_numpy(weights).flatten()).sum()
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, wide.grad.numpy(), atol=1e-5)


def test_nothing_to_train_on_is_zero_with_finite_zero_gradients():
    logits, targets, weights = random_case()

    def loss(logits):
        return cross_entropy(logits, jnp.asarray(targets), jnp.zeros_like(weights), Settings(z_loss=0.1))["loss"]

    (total, count), gradient = loss(jnp.asarray(logits)), jax.grad(lambda x: loss(x)[0])(jnp.asarray(logits))
    assert (float(total), float(count)) == (0, 0)
    np.testing.assert_array_equal(gradient, np.zeros_like(logits))


def test_an_infinite_loss_without_weight_is_left_out():
    assert sums([[[-np.inf, 0.0], [0.0, LN3]]], [[0, 1]], [[0, 1]])["nll"] == pytest.approx((0.28768, 1), abs=1e-4)


def test_twice_the_data_is_twice_the_sum_and_the_same_mean():
    case = random_case()
    once, twice = sums(*case), sums(*(np.concatenate([x, x]) for x in case))
    for name, (total, count) in once.items():
        assert twice[name] == pytest.approx((2 * total, 2 * count), rel=1e-6)


def test_micro_batches_of_8_4_and_2_tokens_add_up_to_the_whole():
    """The mean over all 14 tokens, which is not the mean of the three means."""
    logits, targets, _ = random_case(sequences=3, length=8)
    weights = np.stack([np.arange(8) < valid for valid in (8, 4, 2)]).astype(np.float32)
    whole = sums(logits, targets, weights)["loss"]
    parts = [sums(logits[i : i + 1], targets[i : i + 1], weights[i : i + 1])["loss"] for i in range(3)]
    assert [count for _, count in parts] == [8, 4, 2]
    assert np.sum(parts, axis=0) == pytest.approx(whole, rel=1e-6)
    assert np.mean([total / count for total, count in parts]) != pytest.approx(whole[0] / whole[1], rel=1e-3)


def test_objectives_by_name():
    assert get_objective("cross_entropy") is OBJECTIVES["cross_entropy"] is cross_entropy
    known = ", ".join(sorted(KNOWN))  # other test modules may have registered theirs
    with pytest.raises(ValueError, match=f"^unknown objective 'crossentropy'; known: {re.escape(known)}$"):
        get_objective("crossentropy")
