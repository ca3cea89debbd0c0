"""Uncertainty of scores: intervals for one system, paired tests and intervals for two on the same examples.

Scorers give one outcome for each example; its numbers (`metrics.py`) are the columns here. Every statistic is a
function of the sums of these columns over the examples: a mean is sum / count, micro-F1 is
2 tp / (predicted + expected). A resample sums the columns of the examples that were drawn and applies the same
function. All randomness comes from the given seed. `report/` shows the results.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy import special

# Column sums [..., columns] -> statistic [...].
Statistic = Callable[[Any], Any]

CONFIDENCE = 0.95
RESAMPLES = 9_999
ELEMENTS_AT_ONCE = 1_000_000  # bounds the memory of one chunk of resamples


@dataclasses.dataclass(frozen=True)
class Score:
    """A value with its confidence interval `[low, high]`."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """`{"value", "low", "high"}`, the form of `results.json`."""
        return {"value": float(self.value), "low": float(self.low), "high": float(self.high)}


def mean_columns(values: Float[np.ndarray, " examples"]) -> Float[np.ndarray, "examples 2"]:
    """Columns (value, 1), so that `ratio_of_sums` of them is the mean."""
    return np.stack([values, np.ones_like(values)], axis=-1)


def ratio_of_sums(sums: Float[np.ndarray, "... 2"]) -> Float[np.ndarray, "..."]:
    """First column's sum over the second's; raises ValueError where the second sums to nothing."""
    if np.any(sums[..., 1] <= 0):
        raise ValueError("ratio of sums: the weights of a sample sum to 0; leave out examples without weight")
    return np.asarray(sums[..., 0] / sums[..., 1])


def micro_f1(sums: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "..."]:
    """F1 of the sums (true positives, predicted, expected); 1 where nothing was expected nor predicted."""
    total = sums[..., 1] + sums[..., 2]
    return np.asarray(np.where(total > 0, 2 * sums[..., 0] / np.maximum(total, 1e-300), 1.0))


def wilson(successes: float, trials: int, confidence: float = CONFIDENCE) -> Score:
    """Wilson's score interval of a proportion (Wilson 1927; Brown, Cai and DasGupta 2001).

    Unlike the bootstrap it has a width at 0 and at 1: 0 of 100 gives [0, 0.0370].
    `successes` may be a fraction where a mean of values in [0, 1] is meant: the variance of such a mean is at most
    that of a proportion, so the interval is then conservative; SciPy's takes whole numbers alone. Raises ValueError
    unless 0 <= successes <= trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"wilson: expected 0 <= successes <= trials and trials >= 1, got {successes} of {trials}")
    z = float(special.ndtri(0.5 + confidence / 2))
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2)) / (1 + z * z / trials)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return Score(share, low, high)


def bootstrap_interval(
    columns: Float[np.ndarray, "examples columns"],
    statistic: Statistic,
    *,
    seed: int,
    maximum: float | None,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Score:
    """BCa bootstrap interval of `statistic(column sums)` over examples (Efron 1987, as SciPy computes it).

    Where every resample gives the same value (all documents right: F1 = 1; all wrong: 0) the bootstrap has width zero,
    which would claim certainty. For statistics in [0, `maximum`] the Wilson interval of that value over the number of
    examples is returned instead; for those without a maximum (None) the width stays zero: the examples show no spread.
    Raises ValueError without examples, or with a single one and a statistic without a maximum.
    """
    count = len(columns)
    if count < 1 or (count < 2 and maximum is None):
        raise ValueError(f"bootstrap: {count} examples are too few for an interval of this statistic")
    value = float(statistic(columns.sum(0)))
    draws = {"seed": seed, "confidence": confidence, "resamples": resamples}
    limits = bca_limits([columns], lambda sums: statistic(sums[0]), **draws)
    if limits is not None:
        return Score(value, *limits)
    if maximum is None:
        return Score(value, value, value)
    share = wilson(min(value / maximum, 1.0) * count, count, confidence)
    return Score(value, maximum * share.low, maximum * share.high)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact McNemar test from the two discordant counts (McNemar 1947): p-value, 1 where there are none."""
    discordant = only_first + only_second
    if discordant == 0:
        return 1.0
    from scipy import stats  # slow to import

    return float(stats.binomtest(min(only_first, only_second), discordant, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down procedure (Holm 1979), in the order given.

    A comparison whose corrected p-value is below a level is shown at that level with all the others taken into account:
    the probability of even one false one among them is at most the level, however they depend on one another.

    >>> holm([0.01, 0.04, 0.03, 0.005])
    [0.03, 0.06, 0.06, 0.02]

    Raises ValueError on what is no p-value.
    """
    if any(not 0 <= p_value <= 1 for p_value in p_values):
        raise ValueError(f"holm: p-values lie in [0, 1], got {list(p_values)}")
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def paired_permutation(
    first: Float[np.ndarray, "examples columns"],
    second: Float[np.ndarray, "examples columns"],
    statistic: Statistic,
    *,
    seed: int,
    permutations: int = RESAMPLES,
) -> float:
    """Two-sided p-value under the hypothesis that two systems do not differ: outcomes are swapped at random.

    Each example's outcomes are swapped between the two, or not. For means this is the sign-flip test of the
    differences; for micro-F1 it is approximate randomisation (Noreen 1989; Yeh 2000). All swaps are enumerated where
    there are at most `permutations` of them, so p is then exact; else p = (1 + hits) / (1 + permutations), which is
    never 0. `scipy.stats.permutation_test` gives the same p where all are enumerated, and takes some
    thirty times as long for 1,000 examples.
    """
    count = len(first)
    difference = second - first
    sums_first, sums_second = first.sum(0), second.sum(0)
    observed = abs(float(statistic(sums_second) - statistic(sums_first)))
    least = observed - 1e-9 * max(1.0, observed)
    exact = 2**count <= permutations
    swaps = _all_swaps(count) if exact else _random_swaps(count, permutations, seed)
    hits = 0
    for chunk in swaps:
        moved = chunk.astype(np.float64) @ difference
        found = statistic(sums_second[None] - moved) - statistic(sums_first[None] + moved)
        hits += int(np.sum(np.abs(found) >= least))
    return hits / 2**count if exact else (1 + hits) / (1 + permutations)


def paired_difference(
    first: Float[np.ndarray, "examples columns"],
    second: Float[np.ndarray, "examples columns"],
    statistic: Statistic,
    *,
    seed: int,
    maximum: float | None,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Score:
    """Interval of `statistic(second) - statistic(first)` on the same examples: BCa, examples resampled in pairs.

    Where the bootstrap has no width (one system fails on every example, the other on none; or both answer alike) the
    two single intervals are combined by square-and-add (Newcombe 1998; MOVER of Donner and Zou 2012), which ignores
    the pairing and so errs on the wide side.
    """
    width = first.shape[1]

    def difference(sums: Float[np.ndarray, "... columns"]) -> Float[np.ndarray, "..."]:
        return np.asarray(statistic(sums[..., width:]) - statistic(sums[..., :width]))

    both = np.concatenate([first, second], axis=1)
    value = float(difference(both.sum(0)))
    draws = {"seed": seed, "confidence": confidence, "resamples": resamples}
    limits = bca_limits([both], lambda sums: difference(sums[0]), **draws)
    if limits is not None:
        return Score(value, *limits)
    a, b = (bootstrap_interval(x, statistic, maximum=maximum, **draws) for x in (first, second))
    low = value - math.hypot(b.value - b.low, a.high - a.value)
    high = value + math.hypot(b.high - b.value, a.value - a.low)
    return Score(value, low, high) if maximum is None else Score(value, max(low, -maximum), min(high, maximum))


def bca_limits(
    tables: Sequence[Float[np.ndarray, "_ columns"]],
    statistic: Callable[[Sequence[Any]], Any],
    *,
    seed: int,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> tuple[float, float] | None:
    """Limits of the BCa interval of a statistic of column sums, of one table of examples or of several drawn apart.

    None where the resampled statistic has no spread, as with one example. Where BCa has no limits (leaving any one
    example out gives the same value, or all resamples lie on one side of it), they are those of the percentiles.
    Memory is bounded by `ELEMENTS_AT_ONCE`, whatever the number of examples.
    """
    if max(map(len, tables)) < 2:
        return None
    from scipy import stats  # slow to import

    def of_examples(*drawn: Int64[np.ndarray, "..."], axis: int) -> Float[np.ndarray, "..."]:
        """The statistic of samples, each of which is given by the numbers of its examples."""
        sums = [_sums_of_drawn(np.moveaxis(one, axis, -1), table) for one, table in zip(drawn, tables, strict=True)]
        return np.asarray(np.round(statistic(sums), 12))  # what is equal but for rounding is equal: ties count

    def bootstrap(**options: Any) -> Any:
        numbers = tuple(np.arange(len(table)) for table in tables)
        return stats.bootstrap(numbers, of_examples, vectorized=True, **shared, **options)

    widest = max(sum(map(len, tables)), sum(table.shape[1] for table in tables))
    shared = {"confidence_level": confidence, "batch": max(1, ELEMENTS_AT_ONCE // widest)}
    with warnings.catch_warnings(action="ignore"):  # no spread is a case of its own
        found = bootstrap(n_resamples=resamples, rng=np.random.default_rng(seed))
    distribution = found.bootstrap_distribution
    if np.ptp(distribution) <= 1e-12 * max(1.0, float(np.abs(distribution).max())):
        return None
    limits = found.confidence_interval
    if np.isnan(limits).any():
        limits = bootstrap(n_resamples=0, bootstrap_result=found, method="percentile").confidence_interval
    return float(limits.low), float(limits.high)


def _sums_of_drawn(
    drawn: Int64[np.ndarray, "*samples drawn"], table: Float[np.ndarray, "examples columns"]
) -> Float[np.ndarray, "*samples columns"]:
    """Column sums of samples of examples: how often each was drawn, times the table."""
    flat, examples = drawn.reshape(-1, drawn.shape[-1]), len(table)
    places = flat + examples * np.arange(len(flat))[:, None]
    times = np.bincount(places.ravel(), minlength=len(flat) * examples).reshape(len(flat), examples)
    return (times.astype(np.float64) @ table).reshape(*drawn.shape[:-1], table.shape[1])


def _random_swaps(count: int, permutations: int, seed: int) -> Iterator[Bool[np.ndarray, "chunk examples"]]:
    rng = np.random.default_rng(seed)
    chunk = max(1, ELEMENTS_AT_ONCE // count)
    for start in range(0, permutations, chunk):
        yield rng.random((min(chunk, permutations - start), count)) < 0.5


def _all_swaps(count: int) -> Iterator[Bool[np.ndarray, "swaps examples"]]:
    yield (np.arange(2**count)[:, None] >> np.arange(count)[None, :]) & 1 == 1
