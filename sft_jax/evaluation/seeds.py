"""Uncertainty over seeds: of a mean of a few runs, of differences of runs with the same seeds, and of rows and seeds
together.

`statistics.py` has what is known of one model from its rows. Here runs are repeated, and there are few of them: all
intervals are by Student's t, and none is by resampling, which is too narrow for three values.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import special

from sft_jax.evaluation.metrics import Metric
from sft_jax.evaluation.scorers.cases import Outcome
from sft_jax.evaluation.statistics import CONFIDENCE, Score


def mean_over_seeds(values: Float[np.ndarray, " seeds"], confidence: float = CONFIDENCE) -> Score:
    """Mean with its t interval: that of runs whose spread is about normal. Raises ValueError for fewer than two.

    >>> score = mean_over_seeds(np.array([1.0, 2.0, 3.0]))
    >>> score.value, round(score.low, 3), round(score.high, 3)
    (2.0, -0.484, 4.484)
    """
    score, _ = _t_score(float(np.mean(values)), *_variance_of_mean(values), confidence)
    return score


def paired_over_seeds(
    first: Float[np.ndarray, " seeds"], second: Float[np.ndarray, " seeds"], confidence: float = CONFIDENCE
) -> tuple[Score, float]:
    """Mean of `second - first` with its t interval, and the p-value of the paired t test (Student 1908).

    What a seed does alike to both settings (the order of examples, for one) is no part of the uncertainty. Raises
    ValueError for fewer than two seeds.
    """
    differences = np.asarray(second) - np.asarray(first)
    return _t_score(float(differences.mean()), *_variance_of_mean(differences), confidence)


def paired_over_seeds_and_rows(
    first: Float[np.ndarray, "seeds rows"], second: Float[np.ndarray, "seeds rows"], confidence: float = CONFIDENCE
) -> tuple[Score, float]:
    """The same where every run has a value for each of the same rows: holds for other seeds and for other rows.

    Seeds and rows are crossed random factors; the variance of the mean difference is the sum of what each of them adds,
    and its degrees of freedom are Satterthwaite's (the quasi-F of Clark 1973). A factor that adds less than nothing is
    left out. Raises ValueError for fewer than two seeds or rows.
    """
    differences = np.asarray(second) - np.asarray(first)
    seeds, rows = differences.shape
    if min(seeds, rows) < 2:
        raise ValueError(f"{seeds} seeds and {rows} rows: an interval needs two of each")
    mean, by_seed, by_row = differences.mean(), differences.mean(1), differences.mean(0)
    rest = differences - by_seed[:, None] - by_row[None] + mean
    of_seeds, of_rows = rows * by_seed.var(ddof=1), seeds * by_row.var(ddof=1)
    of_rest = float((rest**2).sum()) / ((seeds - 1) * (rows - 1))
    squares = [(of_seeds, seeds - 1), (of_rows, rows - 1), (-of_rest, (seeds - 1) * (rows - 1))]
    if of_rows <= of_rest:
        squares = squares[:1]
    elif of_seeds <= of_rest:
        squares = squares[1:2]
    total = sum(square for square, _ in squares)
    freedom = total**2 / max(sum(square**2 / free for square, free in squares), 1e-300)
    return _t_score(float(mean), total / (seeds * rows), max(freedom, 1.0), confidence)


def row_contributions(metric: Metric, outcomes: Sequence[Outcome]) -> Float[np.ndarray, " rows"]:
    """What each row adds to a metric: their mean is the metric, and their spread that of its estimate.

    For a mean they are its values; for a function of sums, such as a ratio, the pseudo-values of the jackknife
    (Tukey 1958). Every outcome must have a value.
    """
    table = metric.table(outcomes)
    rows, sums = len(table), table.sum(0)
    left = np.asarray(metric.statistic(sums[None] - table))
    return rows * float(metric.statistic(sums)) - (rows - 1) * left


def _variance_of_mean(values: Float[np.ndarray, " seeds"]) -> tuple[float, float]:
    """With its degrees of freedom."""
    if len(values) < 2:
        raise ValueError(f"{len(values)} seeds: an interval needs two")
    return float(np.var(values, ddof=1)) / len(values), len(values) - 1.0


def _t_score(mean: float, variance: float, freedom: float, confidence: float) -> tuple[Score, float]:
    deviation = float(np.sqrt(variance))
    half = float(special.stdtrit(freedom, 0.5 + confidence / 2)) * deviation
    if deviation == 0:
        return Score(mean, mean, mean), float(mean == 0)
    return Score(mean, mean - half, mean + half), float(2 * special.stdtr(freedom, -abs(mean) / deviation))
