"""The loss of reward models against numbers worked out elsewhere, and its gradient against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.objectives import PreferenceSettings, compares_pairs, get_objective, has_reference, scores_texts
from sft_jax.objectives.reward import bradley_terry

CHOSEN, REJECTED = (1.2, 0.3, -0.5), (0.2, 0.8, -1.5)
NONE, CENTRED = PreferenceSettings(None), PreferenceSettings(None, centring=0.01)


def slots(margins=(0.0, 0.0, 0.0), weights=(1.0, 1.0, 1.0)):
    """Three pairs in a sequence, and two slots that nothing is in."""
    rows = {
        "scores": [score for pair in zip(CHOSEN, REJECTED, strict=True) for score in pair] + [9.0, 9.0],
        "margins": [margin for margin in margins for _ in range(2)] + [0.0, 0.0],
        "weights": [weight for weight in weights for _ in range(2)] + [0.0, 0.0],
    }
    arrays = [jnp.asarray([values], jnp.float32) for values in rows.values()]
    return *arrays, jnp.asarray([[1, 2, 3, 4, 5, 6, 0, 0]], jnp.int32)


PUBLISHED = [((0.0, 0.0, 0.0), NONE, 0.533533), ((0.5, 0.0, 1.0), NONE, 0.713767), ((0.0,) * 3, CENTRED, 0.557433)]


@pytest.mark.parametrize(("margins", "settings", "expected"), PUBLISHED)
def test_three_pairs(margins, settings, expected):
    found = bradley_terry(*slots(margins), settings)
    assert float(found["loss"][0] / found["loss"][1]) == pytest.approx(expected, abs=1e-5)
    assert float(found["accuracy"][0] / found["accuracy"][1]) == pytest.approx(2 / 3)


def test_metrics_weigh_pairs():
    found = {name: (float(a), float(b)) for name, (a, b) in bradley_terry(*slots(weights=(1, 2, 1)), NONE).items()}
    assert found["accuracy"] == (2.0, 4.0)
    assert found["margin"] == pytest.approx((1.0 - 2 * 0.5 + 1.0, 4.0))
    assert found["chosen_reward"] == pytest.approx((1.2 + 0.6 - 0.5, 4.0))
    assert found["rejected_reward"] == pytest.approx((0.2 + 1.6 - 1.5, 4.0))


def test_a_head_of_zeros():
    scores, *others = slots()
    found = bradley_terry(jnp.zeros_like(scores), *others, CENTRED)
    assert float(found["loss"][0] / found["loss"][1]) == pytest.approx(np.log(2), abs=1e-7)
    assert float(found["accuracy"][0]) == 0


def test_the_gradient_is_that_of_finite_differences():
    scores, *others = slots((0.5, 0.0, 1.0), (1.0, 2.0, 1.0))
    loss = lambda values: bradley_terry(values, *others, CENTRED)["loss"][0]
    gradient, step = np.asarray(jax.grad(loss)(scores))[0], 1e-2
    for slot in range(8):
        moved = [float(loss(scores.at[0, slot].add(sign * step))) for sign in (1, -1)]
        assert gradient[slot] == pytest.approx((moved[0] - moved[1]) / (2 * step), abs=2e-4)
    assert np.abs(gradient[:6]).min() > 0.05
    assert not gradient[6:].any()


def test_what_it_has():
    assert get_objective("reward") is bradley_terry
    assert scores_texts("reward")
    assert compares_pairs("reward")
    assert not has_reference("reward")
