"""Two systems that write differently, alike, and the same: can they be told apart?"""

import random

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sft_jax.evaluation.distinguishable import area_under_curve, distinguishable

WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "dogs", "ran", "over", "hills"]


def texts(seed, count=60, end="."):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=8)) + end for _ in range(count)]


def test_a_habit_is_found():
    found = distinguishable(texts(0), texts(1, end="!"), seed=0)
    assert found.accuracy.value == found.auc.value == 1.0
    assert 0.9 < found.accuracy.low < 1.0  # Wilson's, of the prompts
    assert 0.9 < found.auc.low < 1.0


def test_texts_of_one_kind_are_not_told_apart():
    found = distinguishable(texts(0, 200), texts(50, 200), seed=0)
    for score in (found.accuracy, found.auc):
        assert 0.35 < score.low < 0.5 < score.high < 0.65


def test_the_same_answers_cannot_be_told_apart_although_prompts_can():
    same = [f"answer number {number}" for number in range(40)]
    found = distinguishable(same, same, seed=0)
    assert (found.accuracy.value, found.auc.value) == (0.5, 0.5)


def test_some_answers_with_a_habit():
    plain, mixed = texts(0, 120), texts(1, 80, end="!") + texts(2, 40)
    found, again = distinguishable(plain, mixed, seed=3), distinguishable(plain, mixed, seed=3)
    assert found == again
    assert 0.5 < found.auc.low < found.auc.value < found.auc.high < 1


def test_area_under_curve_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 10, (2, 50)).astype(float) + np.array([[0.0], [2.0]])
    expected = roc_auc_score([0] * 50 + [1] * 50, np.concatenate([first, second]))
    assert area_under_curve(first, second) == pytest.approx(expected)
    assert area_under_curve(np.array([1.0]), np.array([1.0])) == 0.5


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (["a"] * 10, ["b"] * 9, "10 answers against 9"),
        (["a"] * 9, ["b"] * 9, "9 prompts are too few; at least 10"),
        ([""] * 10, [" "] * 10, "no answer has a text"),
    ],
)
def test_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        distinguishable(first, second, seed=0)
