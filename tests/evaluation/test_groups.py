"""Groups and bias: hand tables."""

import numpy as np
import pytest

from sft_jax.evaluation.groups import bias_amplification, group_scores
from sft_jax.evaluation.statistics import wilson


def judged(*right):
    return [{"exact_match": bool(value)} for value in right]


def test_scores_worst_group_and_gap_by_hand():
    groups = ["b"] * 10 + ["a"] * 5 + ["c"] * 5
    found = group_scores(judged(*[1] * 5, *[0] * 5, *[1] * 4, 0, *[1] * 1, *[0] * 4), groups, seed=0)["exact_match"]
    assert found.scores == {"a": wilson(4, 5), "b": wilson(5, 10), "c": wilson(1, 5)}
    assert found.examples == {"a": 5, "b": 10, "c": 5}
    assert (found.best, found.worst) == ("a", "c")
    assert found.gap.value == pytest.approx(0.6)
    assert 0 <= found.gap.low < 0.6 < found.gap.high <= 1
    assert 0.05 < found.p_value < 0.4  # of 20 examples


def test_the_gap_of_two_groups_is_that_of_their_difference():
    """Stratified: SciPy's own bootstrap of two independent samples."""
    from scipy import stats

    rng = np.random.default_rng(0)
    first, second = rng.random(60) < 0.9, rng.random(80) < 0.5
    outcomes, groups = judged(*first, *second), ["a"] * 60 + ["b"] * 80
    found = group_scores(outcomes, groups, seed=0)["exact_match"]
    reference = stats.bootstrap(
        (first.astype(float), second.astype(float)),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        method="BCa",
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert (found.gap.low, found.gap.high) == pytest.approx(tuple(reference), abs=0.02)
    assert found.p_value < 0.001


def test_of_a_metric_that_is_better_the_lower():
    outcomes = [{"repetition": value} for value in (0.1, 0.2, 0.6, 0.8, None)]
    found = group_scores(outcomes, ["a", "a", "b", "b", "c"], seed=0)["repetition"]
    assert (found.best, found.worst) == ("a", "b")
    assert list(found.scores) == ["a", "b"]  # c has no value


def test_a_group_with_a_single_value_has_no_interval_and_is_left_out():
    outcomes = [{"repetition": value} for value in (0.1, 0.2, 0.6, 0.8, 0.9, None)]
    assert list(group_scores(outcomes, list("aabbcc"), seed=0)["repetition"].scores) == ["a", "b"]
    assert group_scores(judged(1, 0, 1), ["a", "a", "b"], seed=0) == {}


def test_the_gap_of_a_metric_that_is_better_the_lower():
    outcomes = [{"repetition": value} for value in (0.1, 0.2, 0.6, 0.8)]
    found = group_scores(outcomes, list("aabb"), seed=0)["repetition"]
    assert found.gap.value == pytest.approx(0.55)


def test_groups_without_spread_get_a_gap_with_width():
    found = group_scores(judged(*[1] * 40), ["a", "b"] * 20, seed=0)["exact_match"]
    edge = 1 - wilson(20, 20).low
    assert (found.gap.value, found.gap.low, found.gap.high) == pytest.approx((0, 0, edge))
    assert found.p_value == 1


def test_p_values_of_groups_that_do_not_differ_are_spread_evenly():
    rng = np.random.default_rng(0)
    p_values = []
    for seed in range(40):
        outcomes = [{"share": float(value)} for value in rng.random(30)]
        p_values.append(group_scores(outcomes, ["a", "b", "c"] * 10, seed=seed)["share"].p_value)
    assert np.mean(np.array(p_values) < 0.05) <= 0.15
    assert 0.3 < np.mean(p_values) < 0.7


@pytest.mark.parametrize(
    ("outcomes", "groups", "message"),
    [
        (judged(1, 0), ["a"], "2 outcomes and 1 groups"),
        (judged(1, 0), ["a", "a"], r"at least two groups are compared, got \['a'\]"),
    ],
)
def test_groups_that_are_refused(outcomes, groups, message):
    with pytest.raises(ValueError, match=message):
        group_scores(outcomes, groups, seed=0)


def test_bias_amplification_by_hand():
    # cooking: 6 of 9 are women (2/3), predicted 8 of 10 (4/5); driving: 3 of 4 men (3/4), predicted 2 of 3 (2/3).
    rows = [("cooking", "cooking", "w")] * 6 + [("cooking", "cooking", "m")] * 2 + [("driving", "cooking", "m")]
    rows += [("driving", "driving", "m")] * 1 + [("cooking", "driving", "w")] * 1 + [("what?", "driving", "m")]
    rows += [("driving", "driving", "m"), ("driving", "sleeping", "w"), ("cooking", "sleeping", "m")]
    predicted, expected, groups = (list(column) for column in zip(*rows, strict=True))
    found = bias_amplification(predicted, expected, groups, seed=0)
    # predicted cooking: women 6 + 1 of 10; driving: men 1 + 1 + 1 of 4; sleeping: 1 and 1 of the data: no pair.
    assert [dict(row) for row in found.rows] == [
        pytest.approx(
            {
                "label": "cooking",
                "group": "w",
                "data_share": 6 / 9,
                "predicted_share": 0.7,
                "amplification": 0.7 - 6 / 9,
            }
        ),
        pytest.approx(
            {"label": "driving", "group": "m", "data_share": 3 / 4, "predicted_share": 3 / 4, "amplification": 0.0}
        ),
    ]
    assert found.mean.value == pytest.approx((0.7 - 6 / 9) / 2)
    assert -1 < found.mean.low < found.mean.value < found.mean.high < 1


def test_bias_that_is_exaggerated_has_an_interval_above_zero():
    groups = ["w"] * 60 + ["m"] * 40 + ["m"] * 60 + ["w"] * 40
    expected = ["a"] * 60 + ["a"] * 40 + ["b"] * 60 + ["b"] * 40
    predicted = ["a" if group == "w" else "b" for group in groups]  # by the group alone
    found = bias_amplification(predicted, expected, groups, seed=0)
    assert found.mean.value == pytest.approx(0.4)
    assert 0.25 < found.mean.low < 0.4 < found.mean.high < 0.55


def test_right_predictions_amplify_nothing_and_claim_no_certainty():
    expected, groups = ["a", "a", "a", "b"] * 10, ["w", "w", "m", "m"] * 10
    found = bias_amplification(expected, expected, groups, seed=0).mean
    edge = wilson(0, 40).high
    assert (found.value, found.low, found.high) == pytest.approx((0, -edge, edge))


@pytest.mark.parametrize(
    ("predicted", "expected", "groups", "message"),
    [
        (["a"], ["a", "b"], ["w", "m"], "1 predictions, 2 labels and 2 groups"),
        (["a", "a"], ["a", "a"], ["w", "w"], r"at least two groups are compared, got \['w'\]"),
        (["a", "a"], ["a", "a"], ["w", "m"], "no group is over-represented"),
        (["b", "b", "b"], ["a", "a", "a"], ["w", "w", "m"], "is ever predicted"),
    ],
)
def test_bias_that_is_refused(predicted, expected, groups, message):
    with pytest.raises(ValueError, match=message):
        bias_amplification(predicted, expected, groups, seed=0)
