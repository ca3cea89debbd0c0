"""The answers side by side: which rows are right, where methods disagree, and every text once."""

import json

import pytest

from sft_jax.evaluation.report.rows import page_rows, row_metric, row_value
from tests.evaluation.report.made_results import results_of, rows, task

METHODS = {"base": "base", "rag": "base", "sft": "tuned"}


def made(methods, primary="exact_match", max_bytes=10**6, **changed):
    results = results_of(METHODS, {"t": task(dict.fromkeys(methods, 0.5), primary=primary, **changed)})
    return page_rows(results, {"t": methods}, max_bytes)


@pytest.mark.parametrize(
    ("metric", "outcome", "value"),
    [
        ("exact_match", {"exact_match": True}, 1.0),
        ("exact_match", {"exact_match": False}, 0.0),
        ("exact_match", {"exact_match": None}, None),
        ("exact_match", {"other": True}, None),
        ("overlap", {"overlap": 0.25}, 0.25),
        ("field_f1", {"true_positives": 2, "predicted": 3, "expected": 5}, 0.5),
        ("field_f1", {"true_positives": 2, "predicted": 3}, None),
        ("held_out_loss", {"loss_sum": 6.0, "loss_weight": 4.0}, 1.5),
        ("held_out_loss", {"loss_sum": 0.0, "loss_weight": 0.0}, None),
        ("label", {"label": "a"}, None),
        ("sums", {"sums": [1, 2]}, None),
        ("count", {"count": 3}, None),
    ],
)
def test_the_value_of_a_row(metric, outcome, value):
    assert row_value(metric, outcome) == value


@pytest.mark.parametrize(
    ("primary", "outcomes", "expected"),
    [
        ("exact_match", [{"exact_match": None}, {"exact_match": True}], "exact_match"),
        ("macro_f1", [{"predicted_label": "a", "accuracy": True}], "accuracy"),
        ("macro_f1", [{"predicted_label": "a"}], None),
    ],
)
def test_the_metric_of_rows(primary, outcomes, expected):
    assert row_metric(primary, outcomes) == expected


def test_answers_stand_side_by_side():
    page = made({"sft": rows(["yes", "yes", "no"]), "base": rows(["yes", "no", "no"])})  # in the order of the results
    assert [method["name"] for method in page["methods"]] == ["base", "rag", "sft"]
    (described,) = page["tasks"]
    assert described["methods"] == [0, 2]
    assert [row["disagree"] for row in described["rows"]] == [False, True, False]
    assert [[answer["right"] for answer in row["answers"]] for row in described["rows"]] == [
        [True, True],
        [False, True],
        [False, False],
    ]
    texts = page["texts"]
    assert [[texts[answer["answer"]] for answer in row["answers"]] for row in described["rows"]] == [
        ["yes", "yes"],
        ["no", "yes"],
        ["no", "no"],
    ]
    assert described["note"] == "Rows are judged by exact match."


def test_a_row_without_a_value_is_neither_right_nor_wrong():
    answers = rows(["yes"])
    answers[0]["outcome"] = {"exact_match": None}
    (row,) = made({"base": answers, "sft": rows(["yes"])})["tasks"][0]["rows"]
    assert [answer["right"] for answer in row["answers"]] == [None, True]
    assert row["disagree"]


def test_losses_are_not_right_or_wrong():
    answers = rows(["a"])
    answers[0]["outcome"] = {"loss_sum": 1.0, "loss_weight": 1.0}
    (described,) = made({"base": answers}, primary="held_out_loss")["tasks"]
    assert described["rows"][0]["answers"][0]["value"] == 1.0
    assert described["rows"][0]["answers"][0]["right"] is None
    assert described["judges"] is False


def test_a_primary_metric_of_all_rows_together():
    (described,) = made({"base": rows(["yes"]), "sft": rows(["no"])}, primary="macro_f1")["tasks"]
    assert described["metric"] == "exact match"
    assert described["note"] == "Rows are judged by exact match. macro-F1 has no value for a single row."
    answers = {name: rows([text]) for name, text in (("base", "a"), ("sft", "b"))}
    for answer in (*answers["base"], *answers["sft"]):
        answer["outcome"] = {"label": answer["answer"]}
    (described,) = made(answers, primary="macro_f1")["tasks"]
    assert described["rows"][0]["disagree"]  # the answers differ
    assert described["note"] == "Rows have no score of their own."


def test_a_text_stands_once_and_another_prompt_beside_its_answer():
    messages = [{"role": "system", "content": "Extract."}, {"role": "user", "content": "What?"}]
    calls = [{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}, *messages]
    answers = {"base": rows(["no"] * 2), "rag": rows(["no"] * 2, messages), "sft": rows(["no"] * 2, calls)}
    page = made(answers)
    texts = page["texts"]
    assert len(texts) == len(set(texts)) == 6  # prompt, answer, outcome, reference, system prompt, call
    row = page["tasks"][0]["rows"][1]
    shown = lambda prompt: [(role, texts[number]) for role, number in prompt]
    assert shown(row["prompt"]) == [("", "What?")]
    first, second, third = row["answers"]
    assert first["prompt"] is None
    assert shown(second["prompt"]) == [("system", "Extract."), ("user", "What?")]
    assert shown(third["prompt"])[0] == ("assistant", '[{"name": "f"}]')


def test_groups():
    answers = [*rows(["a"], group="x", name="u"), *rows(["b"], group="", name="v"), *rows(["c"], group="a", name="w")]
    assert made({"base": answers})["tasks"][0]["groups"] == ["a", "x"]


def test_a_page_is_not_too_large():
    answers = rows([f"answer {number} " + "x" * 1_000 for number in range(100)])
    (described,) = made({"base": answers}, max_bytes=60_000)["tasks"]
    assert 40 <= len(described["rows"]) <= 60
    assert described["rows"][0]["id"] == "t:1"
    assert described["rows"][-1]["id"] == "t:100"
    assert described["note"].endswith("of 100 rows are shown, at even distances; a page of all would be too large.")
    assert len(json.dumps(made({"base": answers}, max_bytes=60_000))) < 70_000


def test_rows_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match=r"task 't': 2 answers of base, 1 of sft"):
        made({"base": rows(["a", "b"]), "sft": rows(["a"])})
    with pytest.raises(ValueError, match=r"task 't': answer 0 is to row 't:1' for base, to 'u:1' for sft"):
        made({"base": rows(["a"]), "sft": rows(["a"], name="u")})


def test_answers_of_no_task_are_refused():
    results = results_of(METHODS, {"t": task({"base": 0.5})})
    with pytest.raises(ValueError, match=r"answers of task 'u': the results have t$"):
        page_rows(results, {"u": {"base": rows(["a"])}})


def test_tasks_of_forgetting_may_be_among_them():
    results = results_of(METHODS, {"t": task({"base": 0.5})}, forgetting={"u": task({"base": 0.5})})
    assert [described["name"] for described in page_rows(results, {"u": {"base": rows(["a"])}})["tasks"]] == ["u"]


def test_no_answers():
    page = page_rows(results_of(METHODS, {"t": task({"base": 0.5})}), {})
    assert (page["texts"], page["tasks"]) == ([], [])
