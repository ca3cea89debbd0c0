"""Losses of pairs against numbers worked out elsewhere, and their gradients against finite differences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.objectives import METHODS, PreferenceSettings, compares_pairs, get_objective, has_reference

# Sums of log-probabilities and numbers of tokens of two pairs.
POLICY = ((-12.0, -15.0), (-20.0, -18.0))
REFERENCE = ((-13.0, -14.0), (-19.0, -19.5))
TOKENS = ((8, 6), (10, 12))
BETA = PreferenceSettings(beta=0.1)


def with_numbers(**numbers):
    return dataclasses.replace(BETA, **numbers)


def slots(policy, reference, tokens, width=0, weights=None):
    """Pairs one behind the other in one sequence: each sum spread unevenly over its tokens."""
    rows = {"policy": [], "reference": [], "weights": [], "branches": []}
    for pair, counts in enumerate(tokens):
        for side, count in enumerate(counts):
            shares = np.linspace(1.0, 2.0, count) / np.linspace(1.0, 2.0, count).sum()
            rows["policy"] += (policy[pair][side] * shares).tolist()
            rows["reference"] += (reference[pair][side] * shares[::-1]).tolist()
            rows["weights"] += [1.0 if weights is None else weights[pair]] * count
            rows["branches"] += [2 * pair + side + 1] * count
    empty = max(width - len(rows["branches"]), 0)
    arrays = {name: np.array([values + [0] * empty]) for name, values in rows.items()}
    dtypes = {"branches": jnp.int32}
    return [jnp.asarray(array, dtypes.get(name, jnp.float32)) for name, array in arrays.items()]


def losses(name, settings, policy=POLICY, reference=REFERENCE, tokens=TOKENS):
    """The loss of each pair by itself."""
    found = []
    for pair in range(len(policy)):
        one = [values[pair : pair + 1] for values in (policy, reference, tokens)]
        metrics = get_objective(name)(*slots(*one, width=40), settings=settings)
        found.append(float(metrics["loss"][0] / metrics["loss"][1]))
    return found


PUBLISHED = [
    ("dpo", BETA, 0.598139, 0.825939),
    ("dpo", with_numbers(label_smoothing=0.1), 0.618139, 0.800939),
    ("dpo_robust", with_numbers(label_smoothing=0.1), 0.573139, 0.857189),
    ("dpo_hinge", BETA, 0.8, 1.25),
    ("dpo_ipo", BETA, 22.168403, 27.300625),
    ("dpo", with_numbers(per_token=True), 0.678670, 0.704460),
    ("dpo", with_numbers(sft_weight=1.0), 2.098139, 2.825939),
    ("simpo", PreferenceSettings(beta=2.0, margin=1.0), 0.313262, 2.126928),
    ("cpo", BETA, 0.554355, 0.798139),
    ("orpo", PreferenceSettings(beta=1.0), 0.271058, 1.042058),
    ("orpo", with_numbers(sft_weight=1.0), 1.527106, 2.104206),
]


@pytest.mark.parametrize(("name", "settings", "first", "second"), PUBLISHED)
def test_two_pairs(name, settings, first, second):
    assert losses(name, settings) == pytest.approx([first, second], abs=1e-5)
    metrics = get_objective(name)(*slots(POLICY, REFERENCE, TOKENS), settings=settings)
    assert float(metrics["loss"][0]) == pytest.approx(first + second, abs=2e-5)
    assert float(metrics["loss"][1]) == 2


@pytest.mark.parametrize(("name", "expected"), [("dpo", (0.693147, 0.313262, 0.126928)), ("dpo_hinge", (1, 0, 0))])
def test_margins_of_0_10_and_20(name, expected):
    found = losses(name, BETA, ((-5.0, -5.0), (-5.0, -15.0), (-5.0, -25.0)), ((-5.0, -5.0),) * 3, ((2, 3),) * 3)
    assert found == pytest.approx(expected, abs=1e-5)


def mean_loss(policy, reference, **numbers):
    found = losses("dpo", with_numbers(**numbers), policy, reference, ((1, 1),) * len(policy))
    return sum(found) / len(found)


def test_means_of_four_pairs():
    policy = tuple(zip((-3.0, -2.5, -4.0, -1.5), (-5.0, -3.5, -6.0, -2.5), strict=True))
    reference = tuple(zip((-2.8, -2.3, -3.8, -1.4), (-3.2, -2.7, -4.2, -1.8), strict=True))
    assert mean_loss(policy, reference) == pytest.approx(0.639970, abs=1e-5)
    assert mean_loss(policy, reference, label_smoothing=0.3) == pytest.approx(0.672970, abs=1e-5)
    draw = np.random.RandomState(0)
    sums = [draw.normal(0, 5, (8, 4)).sum(axis=1) for _ in range(2)]
    drawn = [tuple(zip(of[:4].tolist(), of[4:].tolist(), strict=True)) for of in sums]
    assert mean_loss(*drawn) == pytest.approx(0.753059, abs=1e-5)
    assert mean_loss(*drawn, label_smoothing=0.3) == pytest.approx(0.925446, abs=1e-5)


def tail_case(before=0):
    """Two answers of 4 and 2 tokens, behind another pair of which the first `before` targets are given."""
    policy, reference = [-1, -2, -3, -4, -0.5, -1.5], [-1.1, -1.9, -3.2, -3.5, -0.6, -1.2]
    more, numbers = [-7.0, -0.1, -0.2][:before], [1, 1, 2][:before]
    numbers += [number + (2 if before else 0) for number in (1, 1, 1, 1, 2, 2)]
    rows = ([*more, *policy], [*more, *reference], [1.0] * len(numbers))
    return [*(jnp.asarray([row], jnp.float32) for row in rows), jnp.asarray([numbers], jnp.int32)]


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.683197), (0.5, 0.690650), (1.0, 0.698160)])
def test_tails_weigh_less_on_policy_and_reference(share, expected):
    settings = with_numbers(tail_weight=share)
    metrics = get_objective("dpo")(*tail_case(), settings=settings)
    assert float(metrics["loss"][0]) == pytest.approx(expected, abs=1e-5)
    packed = get_objective("dpo")(*tail_case(before=3), settings=settings)
    assert float(packed["loss"][0]) == pytest.approx(expected + np.log(2), abs=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_gradients_are_finite_differences(name):
    settings = PreferenceSettings(beta=0.3, margin=0.2, label_smoothing=0.1, tail_weight=0.5, sft_weight=0.7)
    policy, *others = slots(POLICY, REFERENCE, TOKENS, width=44, weights=(1.0, 2.0))
    loss = lambda values: get_objective(name)(values, *others, settings=settings)["loss"][0]
    gradient, step = np.asarray(jax.grad(loss)(policy)), 1e-2
    for slot in (0, 5, 8, 13, 14, 30, 43):
        moved = [float(loss(policy.at[0, slot].add(sign * step))) for sign in (1, -1)]
        assert gradient[0, slot] == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=5e-3, abs=2e-4)
    assert gradient[0, 43] == 0
    assert np.abs(gradient[0, :36]).min() > 1e-4


def test_the_gradient_of_dpo():
    policy, *others = slots(POLICY, REFERENCE, TOKENS)
    gradient = jax.grad(lambda values: get_objective("dpo")(values, *others, settings=BETA)["loss"][0])(policy)
    assert gradient[0, :14].tolist() == pytest.approx([-0.045017] * 8 + [0.045017] * 6, abs=1e-6)
    assert gradient[0, 14:].tolist() == pytest.approx([-0.056218] * 10 + [0.056218] * 12, abs=1e-6)


@pytest.mark.parametrize("almost", [-1e-9, -1e-12, 0.0])
def test_orpo_is_finite_where_an_answer_is_almost_certain(almost):
    policy, *others = slots(((almost, -2.0), (-3.0, almost)), REFERENCE, ((1, 1), (1, 1)))
    settings = with_numbers(sft_weight=1.0)
    value, gradient = jax.value_and_grad(lambda x: get_objective("orpo")(x, *others, settings=settings)["loss"][0])(
        policy
    )
    assert np.isfinite(value)
    assert np.isfinite(np.asarray(gradient)).all()
    if almost == -1e-9:
        odds = lambda score: score - np.log(-np.expm1(score))
        terms = [np.log1p(np.exp(odds(b) - odds(a))) for a, b in ((almost, -2.0), (-3.0, almost))]
        assert float(value) == pytest.approx(0.1 * sum(terms) - almost + 3.0, rel=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_at_the_start_the_loss_is_known(name):
    if not has_reference(name):
        return
    known = {"dpo": np.log(2), "dpo_hinge": 1.0, "dpo_ipo": 1 / (4 * 0.1**2), "dpo_robust": np.log(2)}
    settings = with_numbers(label_smoothing=0.1)
    assert losses(name, settings, POLICY, POLICY) == pytest.approx([known[name]] * 2, rel=1e-5)


def test_metrics():
    metrics = get_objective("dpo")(*slots(POLICY, REFERENCE, TOKENS, width=50, weights=(1.0, 3.0)), settings=BETA)
    found = {name: (float(total), float(count)) for name, (total, count) in metrics.items()}
    assert found["margin"] == pytest.approx((0.2 - 3 * 0.25, 4.0), abs=1e-5)
    assert found["accuracy"] == (1.0, 4.0)
    assert found["chosen_reward"] == pytest.approx((0.1 - 3 * 0.1, 4.0), abs=1e-5)
    assert found["rejected_reward"] == pytest.approx((-0.1 + 3 * 0.15, 4.0), abs=1e-5)
    assert found["nll"] == pytest.approx((12 + 3 * 20, 8 + 3 * 10), abs=1e-4)


def test_the_reference_is_not_looked_at_where_there_is_none():
    policy, _, *others = slots(POLICY, REFERENCE, TOKENS)
    without = get_objective("simpo")(policy, None, *others, settings=BETA)
    assert float(without["loss"][0]) == pytest.approx(sum(losses("simpo", BETA)), rel=1e-6)


def test_which_objectives_have_what():
    assert [name for name in METHODS if has_reference(name)] == ["dpo", "dpo_hinge", "dpo_ipo", "dpo_robust"]
    assert all(map(compares_pairs, METHODS))
    assert not compares_pairs("cross_entropy")
    assert not has_reference("cross_entropy")
