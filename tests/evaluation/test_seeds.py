"""Intervals and tests over few seeds, against SciPy's and against the truth in simulations."""

import numpy as np
import pytest
from scipy import stats

from sft_jax.evaluation.metrics import metrics_in
from sft_jax.evaluation.scoring import score_values
from sft_jax.evaluation.seeds import (
    mean_over_seeds,
    paired_over_seeds,
    paired_over_seeds_and_rows,
    row_contributions,
)


def test_as_scipy_computes_them():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 5))
    expected = stats.t.interval(0.95, 4, loc=first.mean(), scale=stats.sem(first))
    found = mean_over_seeds(first)
    assert (found.value, found.low, found.high) == pytest.approx((first.mean(), *expected))
    difference, p_value = paired_over_seeds(first, second)
    test = stats.ttest_rel(second, first)
    interval = test.confidence_interval(0.95)
    assert p_value == pytest.approx(test.pvalue)
    assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))


def test_without_spread_there_is_no_width():
    same = np.full(3, 0.5)
    assert mean_over_seeds(same).as_dict() == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert paired_over_seeds(same, same)[1] == 1.0
    assert paired_over_seeds(same, same + 1.0)[1] == 0.0
    assert paired_over_seeds_and_rows(np.zeros((3, 4)), np.zeros((3, 4)))[1] == 1.0


@pytest.mark.parametrize("shape", [(1, 5), (5, 1)])
def test_one_of_anything_is_no_sample(shape):
    with pytest.raises(ValueError, match="needs two"):
        paired_over_seeds_and_rows(np.zeros(shape), np.ones(shape))
    with pytest.raises(ValueError, match="needs two"):
        mean_over_seeds(np.ones(1))


@pytest.mark.parametrize(
    ("of_seeds", "of_rows", "noise"),
    [(0.0, 0.0, 1.0), (0.5, 0.0, 1.0), (0.0, 1.0, 0.3), (0.2, 1.0, 1.0), (1.0, 1.0, 0.0)],
)
def test_seeds_and_rows_together_hold_their_level(of_seeds, of_rows, noise):
    """Of 1,000 pairs that do not differ about one in twenty is called different; by rows alone it would be more."""
    rng = np.random.default_rng(1)
    found, naive = 0, 0
    for _ in range(1_000):
        seeds, rows = of_seeds * rng.normal(size=(4, 1)), of_rows * rng.normal(size=(1, 50))
        second = seeds + rows + noise * rng.normal(size=(4, 50))
        found += paired_over_seeds_and_rows(np.zeros((4, 50)), second)[1] < 0.05
        naive += stats.ttest_1samp(second.mean(0), 0).pvalue < 0.05
    assert found <= 80
    if of_seeds:
        assert naive > 90


def test_rows_help_where_seeds_agree():
    """A small effect that all seeds show alike on many rows is shown; on few it is not."""
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(1, 400))
    first = np.broadcast_to(rows, (3, 400)) + 0.1 * rng.normal(size=(3, 400))
    second = first + 0.2 + 0.5 * rng.normal(size=(1, 400)) + 0.1 * rng.normal(size=(3, 400))
    assert paired_over_seeds_and_rows(first, second)[1] < 0.001
    assert paired_over_seeds_and_rows(first[:, :4], second[:, :4])[1] > 0.01


@pytest.mark.parametrize("shape", [(3, 3), (2, 50), (3, 8)])
def test_each_factor_adds_its_own_part(shape):
    """Also where their degrees of freedom are the same number: seeds as rows and rows as seeds give the same."""
    rng = np.random.default_rng(4)
    seeds, rows = rng.normal(size=(shape[0], 1)), rng.normal(size=(1, shape[1]))
    differences = 1 + 2 * seeds + 2 * rows + 0.01 * rng.normal(size=shape)
    nothing = np.zeros(shape)
    score, p_value = paired_over_seeds_and_rows(nothing, differences)
    turned, turned_p = paired_over_seeds_and_rows(nothing.T, differences.T)
    assert (score.low, score.high, p_value) == pytest.approx((turned.low, turned.high, turned_p))
    own = differences.mean(1).var(ddof=1) / shape[0] + differences.mean(0).var(ddof=1) / shape[1]
    least = stats.t.isf(0.025, sum(shape) - 2) * np.sqrt(own)
    assert (score.high - score.low) / 2 > 0.99 * least


def test_contributions_of_rows():
    """Of a mean, its values; of a ratio, their mean is near the metric, nearer than 1 / rows."""
    outcomes = [{"exact_match": value} for value in (True, False, True, True)]
    metric = metrics_in(outcomes)["exact_match"]
    assert row_contributions(metric, outcomes).tolist() == pytest.approx([1, 0, 1, 1])
    rng = np.random.default_rng(3)
    outcomes = [
        {"true_positives": int(a), "predicted": int(a + b), "expected": int(a + c)}
        for a, b, c in rng.integers(0, 4, (200, 3))
    ]
    contributions = row_contributions(metrics_in(outcomes)["field_f1"], outcomes)
    assert contributions.mean() == pytest.approx(score_values(outcomes)["field_f1"], abs=1e-3)
