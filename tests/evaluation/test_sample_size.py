"""Examples needed, against published tables and the power that the tests then have."""

import numpy as np
import pytest
from scipy import stats

from sft_jax.evaluation.sample_size import examples_needed


@pytest.mark.parametrize(
    ("difference", "discordant", "power", "examples"),
    [
        # (1.95996 sqrt(0.2) + 0.84162 sqrt(0.19))^2 / 0.01 = 154.6
        (0.1, 0.2, 0.8, 155),
        (-0.1, 0.2, 0.8, 155),
        # (1.95996 sqrt(0.1) + 0.84162 sqrt(0.0975))^2 / 0.0025 = 311.98
        (0.05, 0.1, 0.8, 312),
        # (1.95996 sqrt(0.2) + 1.28155 sqrt(0.19))^2 / 0.01 = 205.9
        (0.1, 0.2, 0.9, 206),
    ],
)
def test_paired_proportions_by_hand(difference, discordant, power, examples):
    assert examples_needed(difference, discordant=discordant, power=power) == examples


def test_mcnemars_test_then_has_the_power():
    """Without continuity correction, which the formula is of; 4,000 evaluations of 155 examples."""
    rng = np.random.default_rng(0)
    lost, won, _ = rng.multinomial(examples_needed(0.1, discordant=0.2), [0.05, 0.15, 0.8], 4_000).T
    shown = (won - lost) ** 2 / (won + lost) > stats.chi2.ppf(0.95, 1)
    assert 0.78 <= shown.mean() <= 0.83
    exact = np.mean([stats.binomtest(int(a), int(a + b)).pvalue < 0.05 for a, b in zip(lost, won, strict=True)])
    assert 0.72 <= exact < shown.mean()


@pytest.mark.parametrize(
    ("effect", "power", "examples"),
    # G*Power 3.1, t tests, difference between two dependent means, two-tailed.
    [(0.2, 0.8, 199), (0.5, 0.8, 34), (0.8, 0.8, 15), (0.5, 0.95, 54)],
)
def test_paired_means_by_published_tables(effect, power, examples):
    assert examples_needed(effect, deviation=1.0, power=power) == examples
    assert examples_needed(-effect / 10, deviation=0.1, power=power) == examples


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0.1,), {}, "give discordant .* or deviation"),
        ((0.1,), {"discordant": 0.2, "deviation": 1.0}, "give discordant .* or deviation"),
        ((0.0,), {"discordant": 0.2}, "no number of examples shows a difference of 0"),
        ((0.3,), {"discordant": 0.2}, "must lie between the difference, 0.3, and 1, got 0.2"),
        ((0.3,), {"deviation": 0.0}, "the deviation must be above 0"),
        ((0.1,), {"discordant": 0.2, "power": 1.0}, "power and significance lie between 0 and 1"),
        ((1e-6,), {"deviation": 1.0}, "more than 10,000,000 for 1e-06 of a standard deviation"),
    ],
)
def test_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        examples_needed(*arguments, **options)
