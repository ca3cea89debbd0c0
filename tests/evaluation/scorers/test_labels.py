"""Classification against hand tables and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from sft_jax.evaluation.scorers import Case, make_scorer
from sft_jax.evaluation.scoring import aggregate, compare, detail_tables
from sft_jax.evaluation.statistics import wilson
from tests.evaluation.scored import score, scored

SPAM = {"labels": ["spam", "not spam"]}


@pytest.mark.parametrize(
    ("answer", "options", "predicted"),
    [
        ("spam", SPAM, "spam"),
        (' "Not  Spam." ', SPAM, "not spam"),
        ("It is spam", SPAM, "(other)"),
        ("It is spam!", SPAM | {"anywhere": True}, "spam"),
        ("It is NOT spam.", SPAM | {"anywhere": True}, "not spam"),
        ("spammer", SPAM | {"anywhere": True}, "(other)"),
        ("yes and no", {"labels": ["yes", "no", "spam"], "anywhere": True}, "(other)"),
        ("", SPAM, "(other)"),
        ("", {}, "(other)"),
        ("Ham", {}, "ham"),
    ],
)
def test_the_label_of_an_answer(answer, options, predicted):
    assert score("labels", answer, "spam", **options) == {
        "accuracy": predicted == "spam",
        "predicted_label": predicted,
        "expected_label": "spam",
    }


EXPECTED = ["a", "a", "a", "b", "b", "c"]
PREDICTED = ["a", "a", "b", "b", "what?", "a"]


def test_metrics_and_tables_by_hand():
    outcomes = scored("labels", PREDICTED, EXPECTED)
    scores = aggregate(outcomes, seed=0)
    assert list(scores) == ["accuracy", "macro_f1"]
    assert scores["accuracy"] == wilson(3, 6)
    # a: 2 hits, 3 predicted, 3 expected: 2/3. b: 1, 2, 2: 1/2. c: never predicted: 0.
    assert scores["macro_f1"].value == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert 0 <= scores["macro_f1"].low < 7 / 18 < scores["macro_f1"].high <= 1
    tables = detail_tables(outcomes)
    assert tables["confusion"] == {
        "a": {"a": 2, "b": 1, "c": 0, "(other)": 0},
        "b": {"a": 0, "b": 1, "c": 0, "(other)": 1},
        "c": {"a": 1, "b": 0, "c": 0, "(other)": 0},
    }
    assert tables["labels"]["a"] == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "support": 3})
    assert tables["labels"]["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}


def test_macro_f1_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    expected = [str(label) for label in rng.integers(0, 5, 200)]
    predicted = [label if rng.random() < 0.6 else str(rng.integers(0, 7)) for label in expected]  # 5 and 6 are no label
    reference = f1_score(expected, predicted, labels=sorted(set(expected)), average="macro")
    assert aggregate(scored("labels", predicted, expected), seed=0)["macro_f1"].value == pytest.approx(reference)


def test_two_systems_are_compared_over_the_same_labels():
    first, second = scored("labels", PREDICTED, EXPECTED), scored("labels", EXPECTED, EXPECTED)
    comparison = compare(first, second, seed=0)["macro_f1"]
    assert comparison.difference.value == pytest.approx(1 - 7 / 18)
    assert comparison.difference.low <= 1 - 7 / 18 <= comparison.difference.high
    assert comparison.p_value == pytest.approx(2 / 2**3)  # three examples differ; both ways of swapping all of them
    assert comparison.test == "paired permutation"


@pytest.mark.parametrize(
    ("options", "reference", "message"),
    [
        (SPAM, "ham", r"the reference 'ham' is none of the labels \['spam', 'not spam'\]"),
        ({}, " ", "the reference ' ' is no label"),
        ({}, "(other)", "is no label"),
        ({"labels": ["a", "A"]}, "a", "at least two different labels"),
        ({"labels": ["a"]}, "a", "at least two different labels"),
        ({"labels": ["a", "(Other)"]}, "a", r"none of them empty or '\(other\)'"),
        ({"anywhere": True}, "a", "give them as the option 'labels'"),
        ({"labels": "ab"}, "a", "'labels' of scorer 'labels' must be a list, each text, got 'ab'"),
        ({"labels": [1, 2]}, "1", "a list, each text"),
    ],
)
def test_refused(options, reference, message):
    with pytest.raises(ValueError, match=message):
        make_scorer("labels", options)("a", Case("1", reference))
