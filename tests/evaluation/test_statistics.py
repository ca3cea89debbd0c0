"""Numbers against published values, hand calculation and scipy."""

import numpy as np
import pytest
from scipy import stats

from sft_jax.evaluation.statistics import (
    bootstrap_interval,
    holm,
    mcnemar_exact,
    mean_columns,
    micro_f1,
    paired_difference,
    paired_permutation,
    ratio_of_sums,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (0, 100, 0.0, 0.0370),
        (100, 100, 0.9630, 1.0),
        (5, 10, 0.2366, 0.7634),
        (1, 1, 0.2065, 1.0),
    ],
)
def test_wilson_interval(successes, trials, low, high):
    score = wilson(successes, trials)
    assert score.value == successes / trials
    assert (score.low, score.high) == pytest.approx((low, high), abs=5e-5)
    reference = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert (score.low, score.high) == pytest.approx((reference.low, reference.high), abs=1e-12)


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_proportion(successes, trials):
    with pytest.raises(ValueError, match="expected 0 <= successes <= trials"):
        wilson(successes, trials)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [
        (10, 2, 158 / 4096),  # 2 (1 + 12 + 66) / 2^12 = 0.0386
        (2, 10, 158 / 4096),
        (0, 5, 2 / 32),
        (0, 6, 2 / 64),
        (3, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_exact_mcnemar(only_first, only_second, p_value):
    assert mcnemar_exact(only_first, only_second) == pytest.approx(p_value, abs=1e-12)


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [
        ([], []),
        ([0.03], [0.03]),
        # 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04, which is not below the one before.
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.9, 0.5, 0.001], [1.0, 1.0, 0.003]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
    ],
)
def test_holm(p_values, corrected):
    assert holm(p_values) == pytest.approx(corrected)


def test_holm_shows_what_the_procedure_shows():
    """Step by step, as published: the smallest against level / m, the next against level / (m - 1), until one fails."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        p_values = list(rng.random(6) ** 4)
        shown = set()
        for rank, index in enumerate(np.argsort(p_values)):
            if p_values[index] > 0.05 / (6 - rank):
                break
            shown.add(int(index))
        assert {index for index, p_value in enumerate(holm(p_values)) if p_value <= 0.05} == shown


def test_holm_refuses_what_is_no_p_value():
    with pytest.raises(ValueError, match="p-values lie in"):
        holm([0.5, 1.5])


def counts(examples: int, accuracy: float, seed: int) -> np.ndarray:
    """Documents with (true positives, predicted, expected) fields, of uneven difficulty."""
    rng = np.random.default_rng(seed)
    expected = rng.integers(3, 7, examples)
    predicted = np.minimum(6, expected + rng.integers(0, 2, examples))
    difficulty = np.clip(accuracy + 0.3 * rng.standard_normal(examples), 0, 1)
    return np.stack([rng.binomial(expected, difficulty), predicted, expected], -1).astype(np.float64)


def scipy_f1(hits, predicted, expected, axis):
    return 2 * hits.sum(axis) / (predicted.sum(axis) + expected.sum(axis))


def test_f1_interval_agrees_with_scipy():
    columns = counts(examples=80, accuracy=0.85, seed=1)
    score = bootstrap_interval(columns, micro_f1, seed=0, maximum=1.0)
    reference = stats.bootstrap(
        tuple(columns.T), scipy_f1, paired=True, vectorized=True, method="BCa", rng=np.random.default_rng(5)
    ).confidence_interval
    assert score.value == pytest.approx(scipy_f1(*columns.T, axis=-1), abs=1e-12)
    assert (score.low, score.high) == pytest.approx(tuple(reference), abs=4e-3)
    assert score.high - score.low > 0.04  # far wider than the tolerance


def test_mean_interval_agrees_with_scipy_on_skewed_values():
    values = np.random.default_rng(3).exponential(size=60)
    score = bootstrap_interval(mean_columns(values), ratio_of_sums, seed=0, maximum=None)
    reference = stats.bootstrap((values,), np.mean, method="BCa", rng=np.random.default_rng(5)).confidence_interval
    percentile = stats.bootstrap(
        (values,), np.mean, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    assert (score.low, score.high) == pytest.approx(tuple(reference), abs=0.015)
    assert abs(score.high - percentile.high) > 0.015  # the correction for skewness is there


def test_ratio_of_sums_weights_examples_by_their_tokens():
    loss = np.array([[2.0, 1.0], [30.0, 10.0]])  # per-token losses 2 and 3
    assert bootstrap_interval(loss, ratio_of_sums, seed=0, maximum=None).value == pytest.approx(32 / 11)
    with pytest.raises(ValueError, match="weights of a sample sum to 0"):
        ratio_of_sums(np.zeros((3, 2)))


def test_intervals_depend_on_the_seed_alone():
    columns = counts(examples=50, accuracy=0.7, seed=2)
    options = {"maximum": 1.0}
    first, again, other = (bootstrap_interval(columns, micro_f1, seed=s, **options) for s in (7, 7, 8))
    assert first == again
    assert first.low != other.low


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5])
def test_examples_without_spread_get_the_wilson_interval(value):
    score = bootstrap_interval(mean_columns(np.full(100, value)), ratio_of_sums, seed=0, maximum=1.0)
    assert score == wilson(100 * value, 100)
    assert score.high - score.low > 0.03


def test_f1_of_one_gets_the_wilson_interval_of_the_documents_although_their_counts_differ():
    columns = np.array([[6.0, 6, 6], [5, 5, 5], [0, 0, 0], [6, 6, 6]])
    assert bootstrap_interval(columns, micro_f1, seed=0, maximum=1.0) == wilson(4, 4)


def test_too_few_examples():
    assert bootstrap_interval(np.array([[6.0, 6, 6]]), micro_f1, seed=0, maximum=1.0) == wilson(1, 1)
    with pytest.raises(ValueError, match="1 examples are too few"):
        bootstrap_interval(np.array([[2.0, 1.0]]), ratio_of_sums, seed=0, maximum=None)
    with pytest.raises(ValueError, match="0 examples are too few"):
        bootstrap_interval(np.zeros((0, 3)), micro_f1, seed=0, maximum=1.0)


def test_spread_without_limits_of_bca_is_no_certainty():
    """Of two examples each gives 0 alone and both give 1: leaving one out says nothing, and resamples differ."""
    product = lambda sums: sums[..., 0] * sums[..., 1]
    score = bootstrap_interval(np.eye(2), product, seed=0, maximum=None)
    assert (score.value, score.low, score.high) == (1, 0, 1)


@pytest.mark.parametrize(
    ("sums", "f1"),
    [([3, 4, 5], 6 / 9), ([0, 0, 5], 0.0), ([0, 5, 0], 0.0), ([0, 0, 0], 1.0), ([5, 5, 5], 1.0)],
)
def test_micro_f1(sums, f1):
    assert micro_f1(np.array(sums, np.float64)) == pytest.approx(f1)


def test_permutation_test_of_means_is_the_exact_sign_flip_test():
    # All 2^5 flips of (1, 2, 3, 4, 5): only +++++ and ----- reach |sum| = 15.
    first, second = np.zeros(5), np.arange(1.0, 6.0)
    p_value = paired_permutation(mean_columns(first), mean_columns(second), ratio_of_sums, seed=0)
    assert p_value == 2 / 32
    reference = stats.permutation_test(
        (first, second), lambda a, b, axis: np.mean(b - a, axis=axis), permutation_type="samples", vectorized=True
    )
    assert p_value == pytest.approx(reference.pvalue)


@pytest.mark.parametrize("examples", [2, 5, 10])
def test_permutation_test_of_f1_is_that_of_scipy(examples):
    first, second = counts(examples, 0.5, seed=4), counts(examples, 0.9, seed=5)
    both = np.concatenate([first, second])

    def difference(a, b, axis):
        f1 = lambda numbers: micro_f1(both[numbers].sum(-2))
        return f1(b) - f1(a)

    reference = stats.permutation_test(
        (np.arange(examples), examples + np.arange(examples)),
        difference,
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert paired_permutation(first, second, micro_f1, seed=0) == pytest.approx(reference.pvalue)


def test_permutation_test_of_f1_by_hand():
    # Swapping the only document that differs gives the same |difference|: p = 1. Two that differ alike: 2 of 4.
    right, wrong = [6.0, 6, 6], [0.0, 6, 6]
    one = np.array([right, wrong, right]), np.array([right, right, right])
    two = np.array([wrong, wrong]), np.array([right, right])
    assert paired_permutation(*one, micro_f1, seed=0) == 1.0
    assert paired_permutation(*two, micro_f1, seed=0) == 0.5


def test_sampled_permutations_agree_with_all_of_them():
    first, second = counts(12, 0.6, seed=4), counts(12, 0.85, seed=5)
    exact = paired_permutation(first, second, micro_f1, seed=0)
    sampled = paired_permutation(first, second, micro_f1, seed=0, permutations=4_000)
    assert 2**12 > 4_000
    assert 0.005 < exact < 0.9
    assert sampled == pytest.approx(exact, abs=0.03)


def test_permutation_test_keeps_its_level_when_nothing_differs():
    p_values = [
        paired_permutation(counts(40, 0.8, seed=s), counts(40, 0.8, seed=s + 500), micro_f1, seed=s, permutations=400)
        for s in range(200)
    ]
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.10
    assert 0.4 <= np.mean(p_values) <= 0.6


def test_difference_interval_uses_the_pairing():
    rng = np.random.default_rng(0)
    shared = rng.uniform(0, 0.8, 60)
    first, second = mean_columns(shared), mean_columns(shared + rng.uniform(0.05, 0.15, 60))
    options = {"seed": 0, "maximum": 1.0}
    score = paired_difference(first, second, ratio_of_sums, **options)
    single = bootstrap_interval(first, ratio_of_sums, **options)
    assert score.value == pytest.approx(0.1, abs=0.01)
    assert score.low < score.value < score.high
    assert score.high - score.low < 0.2 * (single.high - single.low)


def test_difference_without_spread_combines_the_single_intervals():
    # By hand: Wilson's 0/10 is [0, 0.2775], 10/10 is [0.7225, 1]; 1 - sqrt(0.2775^2 + 0.2775^2) = 0.6075.
    none, every = mean_columns(np.zeros(10)), mean_columns(np.ones(10))
    score = paired_difference(none, every, ratio_of_sums, seed=0, maximum=1.0)
    assert (score.value, score.low, score.high) == pytest.approx((1.0, 0.6075, 1.0), abs=5e-5)
    same = paired_difference(every, every, ratio_of_sums, seed=0, maximum=1.0)
    assert (same.value, same.low, same.high) == pytest.approx((0.0, -0.2775, 0.2775), abs=5e-5)


def test_memory_of_a_comparison_does_not_grow_with_the_square_of_the_examples():
    """8,000 examples by 8,000 are half a gigabyte."""
    import tracemalloc

    rng = np.random.default_rng(0)
    first, second = (mean_columns(rng.random(8_000)) for _ in range(2))
    tracemalloc.start()
    paired_difference(first, second, ratio_of_sums, seed=0, maximum=1.0, resamples=50)
    paired_permutation(first, second, ratio_of_sums, seed=0, permutations=50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


def test_intervals_cover_the_truth_as_often_as_they_say():
    """95 % intervals of a mean: Bernoulli(0.9) documents of six fields, 300 repetitions of 60 documents."""
    rng = np.random.default_rng(0)
    hits = 0
    for repetition in range(300):
        right = rng.binomial(6, 0.9, 60).astype(np.float64)
        columns = np.stack([right, np.full(60, 6.0), np.full(60, 6.0)], -1)
        score = bootstrap_interval(columns, micro_f1, seed=repetition, maximum=1.0, resamples=999)
        hits += score.low <= 0.9 <= score.high
    assert 0.90 <= hits / 300 <= 0.99
