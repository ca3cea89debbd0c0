"""pass@k and the best of n by hand and by counting."""

import itertools

import pytest

from sft_jax.evaluation.repeated_answers import best_of_n, likeliest_of_n, pass_at_k, pass_outcomes
from sft_jax.evaluation.scoring import aggregate


@pytest.mark.parametrize(("samples", "right"), [(5, 0), (5, 1), (5, 2), (5, 5), (1, 1), (7, 3)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(samples, right):
    answers = [True] * right + [False] * (samples - right)
    for k in range(1, samples + 1):
        subsets = list(itertools.combinations(answers, k))
        assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_4_of_3_right_in_8():
    """1 - C(5, 4) / C(8, 4) = 1 - 5 / 70."""
    assert pass_at_k(8, 3, 4) == pytest.approx(0.928571, abs=1e-6)


def test_the_likeliest_of_n():
    samples = [outcomes(False, True, False), outcomes(True, False)]
    assert likeliest_of_n(samples, [[-3.0, -1.0, -2.0], [-1.0, -1.0]]) == outcomes(True, True)


@pytest.mark.parametrize("numbers", [(5, 6, 1), (5, -1, 1), (5, 1, 6), (5, 1, 0)])
def test_pass_at_k_refuses(numbers):
    with pytest.raises(ValueError, match="expected 0 <= right <= samples and 1 <= k <= samples"):
        pass_at_k(*numbers)


def outcomes(*right):
    return [{"exact_match": value} for value in right]


def test_outcomes_of_pass_at_k_are_aggregated():
    samples = [
        outcomes(True, False, False, False),
        outcomes(False, False, False, False),
        outcomes(True, True, True, True),
    ]
    found = pass_outcomes(samples, [1, 2])
    assert found[0] == pytest.approx({"pass@1": 1 / 4, "pass@2": 1 / 2})
    scores = aggregate(found, seed=0)
    assert (scores["pass@1"].value, scores["pass@2"].value) == pytest.approx((5 / 12, 1 / 2))
    assert scores["pass@1"].low < 5 / 12 < scores["pass@1"].high
    assert pass_outcomes([[{"accuracy": True}]], [1]) == [{"pass@1": 1.0}]
    with pytest.raises(ValueError, match=r"example 0 has an outcome that is neither right nor wrong: \{'rouge"):
        pass_outcomes([[{"rouge_l": 0.5}]], [1])
    with pytest.raises(ValueError, match="1 of 2 and k = 3"):
        pass_outcomes([outcomes(True, False)], [3])


def test_the_best_of_n():
    first, second, third = ({"rouge_l": value, "n": float(number)} for number, value in enumerate((0.2, 0.7, 0.7)))
    assert best_of_n([[first, second, third], [first]], "rouge_l") == [second, first]
    missing, some = {"repetition": None}, {"repetition": 0.4}
    assert best_of_n([[some, {"repetition": 0.1}, missing], [missing]], "repetition") == [{"repetition": 0.1}, missing]
    assert best_of_n([outcomes(False, True)], "exact_match") == outcomes(True)


@pytest.mark.parametrize(
    ("samples", "column", "message"),
    [
        ([[]], "exact_match", "example 0 has no answers"),
        ([outcomes(True)], "rouge_l", "no bool or float column 'rouge_l'"),
        ([[{"field": {}}]], "field", "no bool or float column 'field'"),
        ([[{"length_ratio": 1.0}]], "length_ratio", "'length_ratio' is neither better high nor low"),
    ],
)
def test_the_best_of_n_refuses(samples, column, message):
    with pytest.raises(ValueError, match=message):
        best_of_n(samples, column)
