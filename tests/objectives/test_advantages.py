"""Advantages against numbers worked out by hand."""

import numpy as np
import pytest

from sft_jax.objectives.advantages import ADVANTAGES, advantages, without_signal

REWARDS = {
    "one of four": [1.0, 0.0, 0.0, 0.0],
    "two of four": [1.0, 1.0, 0.0, 0.0],
    "equal": [0.3] * 4,
    "one is better": [0.35] * 7 + [0.95],
}
EXPECTED = {
    "centred": {
        "one of four": [0.75] + [-0.25] * 3,
        "two of four": [0.5, 0.5, -0.5, -0.5],
        "one is better": [-0.075] * 7 + [0.525],
    },
    "leave_one_out": {
        "one of four": [1.0] + [-0.333333] * 3,
        "two of four": [0.666667] * 2 + [-0.666667] * 2,
        "one is better": [-0.085714] * 7 + [0.6],
    },
    "group_std": {
        "one of four": [1.4997] + [-0.4999] * 3,
        "two of four": [0.865875] * 2 + [-0.865875] * 2,
        "one is better": [-0.353387] * 7 + [2.473708],
    },
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, cases in EXPECTED.items() for name in cases])
def test_a_group(kind, name):
    np.testing.assert_allclose(advantages(np.array([REWARDS[name]]), kind)[0], EXPECTED[kind][name], atol=1e-5)


@pytest.mark.parametrize("kind", ADVANTAGES)
@pytest.mark.parametrize("reward", [0.3, 0.1, 1 / 3, 1e17])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_equal_rewards_are_exactly_without_advantage(kind, reward, size):
    """Beside a group that has some; a mean of equal numbers may be off by rounding."""
    rewards = np.array([[reward] * size, [1.0] + [0.0] * (size - 1)])
    assert (advantages(rewards, kind)[0] == 0).all()
    assert (advantages(rewards, kind)[1] != 0).all()
    assert without_signal(rewards).tolist() == [True, False]


def test_the_mean_of_equal_rewards_is_off_by_rounding():
    """What the test above is about: without the exact comparison it would fail."""
    assert any((ADVANTAGES["group_std"](np.array([[value] * 7])) != 0).any() for value in (0.1, 0.3, 1 / 3))


def test_of_the_step():
    """Deviations of 8 rewards, of which 3 are 1: variance (3 x 0.625^2 + 5 x 0.375^2) / 7."""
    rewards = np.array([[1.0, 0, 0, 0], [1.0, 1, 0, 0]])
    deviation = np.sqrt((3 * 0.625**2 + 5 * 0.375**2) / 7)
    expected = np.array([[0.75, -0.25, -0.25, -0.25], [0.5, 0.5, -0.5, -0.5]]) / (deviation + 1e-4)
    np.testing.assert_allclose(advantages(rewards, "batch_std"), expected, atol=1e-12)
