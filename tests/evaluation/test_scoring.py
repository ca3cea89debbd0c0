"""Outcomes by hand, aggregation and paired comparison."""

import json

import pytest

from sft_jax.evaluation.metrics import higher_is_better
from sft_jax.evaluation.scorers import SCORERS, Case
from sft_jax.evaluation.scoring import aggregate, compare, detail_tables
from sft_jax.evaluation.statistics import wilson
from tests.evaluation.scored import scored

REFERENCE = json.dumps({"vin": "1HG", "year": 2012, "make": "Honda", "owner": None})


def test_micro_f1_over_documents_by_hand():
    # tp 3 + 2 + 0 = 5, predicted 3 + 3 + 0 = 6, expected 3 * 3 = 9: F1 = 10 / 15.
    answers = [REFERENCE, '{"vin": "1HG", "year": 2013, "make": "Honda"}', "prose"]
    scores = aggregate(scored("json_extraction", answers, [REFERENCE] * 3), seed=0)
    assert list(scores) == ["field_f1", "valid_json", "exact_match"]
    assert scores["field_f1"].value == pytest.approx(10 / 15)
    assert 0 <= scores["field_f1"].low < 10 / 15 < scores["field_f1"].high <= 1
    assert scores["valid_json"] == wilson(2, 3)
    assert scores["exact_match"] == wilson(1, 3)


def test_all_wrong_and_all_right_have_an_interval_with_width():
    wrong = scored("json_extraction", ["prose"] * 100, [REFERENCE] * 100)
    right = scored("json_extraction", [REFERENCE] * 100, [REFERENCE] * 100)
    for metric in ("field_f1", "exact_match", "valid_json"):
        assert aggregate(wrong, seed=0)[metric] == wilson(0, 100)
        assert aggregate(right, seed=0)[metric] == wilson(100, 100)
        comparison = compare(wrong, right, seed=0)[metric]
        assert comparison.difference.value == 1.0
        assert comparison.difference.low == pytest.approx(1 - 2**0.5 * 0.0370, abs=1e-4)
        assert comparison.p_value < 1e-3


def test_paired_comparison_of_proportions_is_mcnemar_on_the_discordant_examples():
    # 10 examples won, 2 lost, 8 alike: p = 158 / 4096.
    first = [{"exact_match": value} for value in [False] * 10 + [True] * 2 + [True] * 8]
    second = [{"exact_match": value} for value in [True] * 10 + [False] * 2 + [True] * 8]
    comparison = compare(first, second, seed=0)["exact_match"]
    assert comparison.p_value == pytest.approx(158 / 4096)
    assert comparison.test == "exact McNemar"
    assert comparison.difference.value == pytest.approx(8 / 20)
    assert 0 < comparison.difference.low < 0.4 < comparison.difference.high
    back = compare(second, first, seed=0)["exact_match"]
    assert back.difference.value == pytest.approx(-8 / 20)
    assert back.p_value == comparison.p_value


def test_identical_answers_do_not_differ():
    outcomes = scored("json_extraction", [REFERENCE, "prose"] * 5, [REFERENCE] * 10)
    for comparison in compare(outcomes, outcomes, seed=0).values():
        assert comparison.difference.value == 0
        assert comparison.difference.low < 0 < comparison.difference.high
        assert comparison.p_value == 1


def test_loss_is_weighted_by_tokens_and_not_bounded():
    before = [{"loss_sum": 2.0 * n, "loss_weight": float(n)} for n in (5, 10, 20, 40)]
    after = [{"loss_sum": 1.5 * n, "loss_weight": float(n)} for n in (5, 10, 20, 40)]
    assert aggregate(before, seed=0)["held_out_loss"].value == pytest.approx(2.0)
    comparison = compare(before, after, seed=0)["held_out_loss"]
    assert comparison.difference.value == pytest.approx(-0.5)
    assert comparison.p_value == 2 / 16
    assert not higher_is_better("held_out_loss")
    assert higher_is_better("field_f1")


def test_a_new_scorer_is_a_function_and_a_line(monkeypatch):
    def share_of_words(prediction: str, case: Case) -> dict[str, float]:
        words = case.reference.split()
        return {"words": sum(word in prediction.split() for word in words) / len(words)}

    monkeypatch.setitem(SCORERS, "words", lambda: share_of_words)
    outcomes = scored("words", ["a b", "a", "c"], ["a b", "a b", "a b"])
    score = aggregate(outcomes, seed=0)["words"]
    assert score.value == pytest.approx(0.5)
    assert 0 <= score.low < 0.5 < score.high <= 1
    assert compare(outcomes, outcomes, seed=0)["words"].test == "paired permutation"


def test_outcomes_survive_json():
    outcomes = scored("json_extraction", [REFERENCE, "prose"], [REFERENCE] * 2)
    assert aggregate(json.loads(json.dumps(outcomes)), seed=3) == aggregate(outcomes, seed=3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scored("exact_match", ["a"], []), "zip"),
        (lambda: scored("json_extraction", ["{}"], ["prose"]), "row 0: .*not a JSON object"),
        (lambda: aggregate([], seed=0), "there are no examples"),
        (lambda: aggregate([{"a": True}, {"b": True}], seed=0), "outcome 1 has columns"),
        (lambda: aggregate([{"words": 3}], seed=0), "'words' is a count of no ratio"),
        (lambda: aggregate([{"words": 3.0}], seed=0), r"must lie in \[0, 1\]"),
        (lambda: compare([{"a": True}], [{"a": True}] * 2, seed=0), "1 examples against 2"),
        (lambda: compare([{"a": True}], [{"b": True}], seed=0), "metrics"),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_examples_without_a_value_are_left_out_of_every_kind_of_metric():
    """Such as answers that are calls alone, for which the scorer is not asked."""
    columns = {"accuracy": True, "predicted_label": "a", "expected_label": "a", "field": {"x": [1, 1, 1]}}
    columns |= {"chrf": [1, 1, 1] * 6, "share": 0.5, "kinds": {"y": [1, 2]}}
    outcomes = [columns, dict.fromkeys(columns), columns, columns]
    scores = aggregate(outcomes, seed=0)
    assert {name: score.value for name, score in scores.items()} == {
        "accuracy": 1.0,
        "macro_f1": 1.0,
        "field_f1": 1.0,
        "field_precision": 1.0,
        "field_recall": 1.0,
        "chrf": pytest.approx(100),
        "share": 0.5,
        "kinds": 0.5,
    }
    assert scores["macro_f1"] == wilson(3, 3)
    comparisons = compare(outcomes, outcomes, seed=0)
    assert set(comparisons) == set(scores)
    assert all(comparison.p_value == 1 for comparison in comparisons.values())
    assert detail_tables(outcomes)["kinds"] == {"y": {"share": 0.5, "support": 6}}
    assert detail_tables(outcomes)["confusion"] == {"a": {"a": 3, "(other)": 0}}


def test_precision_and_recall_of_nothing():
    """Nothing predicted where something is expected has the precision 0; nothing of either is right."""
    values = lambda counts: [score.value for score in aggregate([{"field": {"x": counts}}] * 2, seed=0).values()]
    assert values([0, 0, 3]) == [0, 0, 0]
    assert values([0, 3, 0]) == [0, 0, 0]
    assert values([0, 0, 0]) == [1, 1, 1]
