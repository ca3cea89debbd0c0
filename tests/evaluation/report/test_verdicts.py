"""What is said of a difference, by its corrected p-value and its sign."""

import pytest

from sft_jax.evaluation.report import verdicts
from sft_jax.evaluation.report.verdicts import (
    best_untrained,
    called,
    compared,
    gate_text,
    judged_methods,
    key_comparisons,
    task_verdicts,
)
from tests.evaluation.report.made_results import comparison, method, score, task

METHODS = {"base": method(), "few_shot": method(), "rag": method(), "sft": method("tuned")}
SCORES = {"base": 0.1, "few_shot": 0.6, "rag": 0.6, "sft": 0.6}


@pytest.mark.parametrize(
    ("metric", "value", "p_holm", "expected"),
    [
        ("exact_match", 0.1, 0.049, "better"),
        ("exact_match", 0.1, 0.05, "no difference shown"),
        ("exact_match", -0.1, 0.049, "WORSE"),
        ("exact_match", -0.1, 0.9, "no difference shown"),
        ("held_out_loss", -0.1, 0.01, "better"),
        ("held_out_loss", 0.1, 0.01, "WORSE"),
    ],
)
def test_a_difference_is_called(metric, value, p_holm, expected):
    # The uncorrected p-value is below 0.05 in all but one: it does not decide.
    assert called(comparison("base", "sft", value, p_holm, metric)) == expected


@pytest.mark.parametrize(("value", "expected"), [(0.1, "higher"), (-0.1, "lower")])
def test_a_metric_without_a_better_direction_is_not_judged(monkeypatch, value, expected):
    monkeypatch.setattr(verdicts, "higher_is_better", lambda metric: None)
    pair = comparison("base", "sft", value, 0.01)
    assert called(pair) == expected
    described = task(SCORES, [pair])
    assert best_untrained(described, METHODS) is None
    assert task_verdicts(described, METHODS) == [f"sft, exact match: {expected} than base ({value:+.3f}, p = 0.010)"]


def test_the_verdict_names_each_untrained_method_by_what_is_shown():
    pairs = [
        comparison("base", "sft", 0.5, 0.0001),
        comparison("few_shot", "sft", 0.01, 0.7),
        comparison("rag", "sft", -0.1, 0.02),
    ]
    described = task(SCORES, pairs, examples_needed=1_400)
    assert task_verdicts(described, METHODS) == [
        "sft, exact match: better than base (+0.500, p < 0.001); WORSE than rag (-0.100, p = 0.020); "
        "no difference shown against few_shot (+0.010, p = 0.700) (60 rows; about 1,400 would be needed)"
    ]


def test_methods_that_fare_alike_stand_together():
    pairs = [comparison(first, "sft", 0.5, 0.01) for first in ("base", "few_shot", "rag")]
    (sentence,) = task_verdicts(task(SCORES, pairs), METHODS)
    assert sentence == (
        "sft, exact match: better than base (+0.500, p = 0.010), few_shot (+0.500, p = 0.010) and "
        "rag (+0.500, p = 0.010)"
    )


@pytest.mark.parametrize(("needed", "expected"), [(None, "(60 rows)"), (400, "(60 rows; about 400 would be needed)")])
def test_how_many_rows_would_be_needed_is_said_where_it_is_known(needed, expected):
    (sentence,) = task_verdicts(task(SCORES, [comparison("base", "sft", 0.1, 0.5)], examples_needed=needed), METHODS)
    assert sentence == f"sft, exact match: no difference shown against base (+0.100, p = 0.500) {expected}"


def test_each_tuned_method_has_a_sentence_and_the_first_one_the_rows_needed():
    methods = {"base": method(), "sft": method("tuned"), "sft+rag": method("tuned")}
    pairs = [comparison("base", name, 0.1, 0.5) for name in ("sft", "sft+rag")]
    described = task({"base": 0.1, "sft": 0.2, "sft+rag": 0.2}, pairs, examples_needed=400)
    first, second = task_verdicts(described, methods)
    assert first.startswith("sft, ")
    assert "400" in first
    assert second.startswith("sft+rag, ")
    assert "400" not in second


def test_a_comparison_the_other_way_round_is_turned():
    described = task(SCORES, [comparison("sft", "base", -0.4, 0.01, low=-0.6, high=-0.1)])
    turned = compared(described, "base", "sft")
    assert (turned["first"], turned["second"]) == ("base", "sft")
    assert (turned["value"], turned["low"], turned["high"]) == (0.4, 0.1, 0.6)
    assert task_verdicts(described, METHODS)[0].startswith("sft, exact match: better than base (+0.400")


@pytest.mark.parametrize(
    ("methods", "judged", "against"),
    [
        ({"base": "base"}, ["base"], []),
        ({"sft": "tuned"}, ["sft"], []),
        ({"base": "base", "rag": "base"}, ["rag"], ["base"]),
        ({"rag": "base", "base": "base"}, ["rag"], ["base"]),
        ({"a": "tuned", "b": "tuned"}, ["b"], ["a"]),
        ({"base": "base", "sft": "tuned", "rag": "base"}, ["sft"], ["base", "rag"]),
    ],
)
def test_who_is_judged_against_whom(methods, judged, against):
    described = {name: method(weights) for name, weights in methods.items()}
    assert judged_methods(task(dict.fromkeys(methods, 0.5)), described) == (judged, against)


def test_without_comparisons_it_says_so():
    assert task_verdicts(task({"base": 0.5}), METHODS) == ["exact match: there is nothing to compare base with"]
    assert task_verdicts(task({"base": 0.5, "sft": 0.5}), METHODS) == ["sft, exact match: not compared with base"]


def test_the_best_untrained_method():
    assert best_untrained(task(SCORES), METHODS) == "few_shot"  # of two that are equal, and sft is trained
    losses = {name: {"held_out_loss": score(value)} for name, value in (("base", 2.0), ("rag", 1.5), ("sft", 1.0))}
    assert best_untrained(task(losses, primary="held_out_loss"), METHODS) == "rag"
    assert best_untrained(task({"sft": 0.5}), METHODS) is None


def test_key_comparisons_are_with_base_and_with_the_best_untrained_method():
    pairs = [
        comparison("base", "sft", 0.5, 0.01),
        comparison("sft", "few_shot", 0.1, 0.01),
        comparison("rag", "sft", 0.1, 0.01),
        comparison("base", "few_shot", 0.5, 0.01),
        comparison("base", "sft", 0.5, 0.01, "valid_json"),
    ]
    found = [(pair["first"], pair["second"]) for pair in key_comparisons(task(SCORES, pairs), METHODS)]
    assert found == [("base", "few_shot"), ("base", "sft"), ("few_shot", "sft")]


def test_the_gate():
    assert gate_text({"max_regression": 0.02, "failed": []}) == "Gate (no score may fall by more than 0.02): passed"
    assert gate_text({"max_regression": 0.1, "failed": ["a", "b"]}).endswith("by more than 0.1): FAILED: a, b")
