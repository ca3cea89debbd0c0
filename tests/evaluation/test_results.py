"""Results: scores, all pairs compared and corrected, groups, tables, and how many rows a difference would need."""

import dataclasses
import json

import numpy as np
import pytest
from etils import epath

from sft_jax.data.records import DroppedRow
from sft_jax.evaluation.measuring import Entry, Measured
from sft_jax.evaluation.methods import parse_methods
from sft_jax.evaluation.predictions import Before, read_before, with_rows_of, write_predictions
from sft_jax.evaluation.report.terminal import terminal_report
from sft_jax.evaluation.report.write import write_report
from sft_jax.evaluation.results import gate, results_of
from sft_jax.evaluation.sample_size import examples_needed
from sft_jax.evaluation.side_by_side import ByMethod
from sft_jax.evaluation.statistics import holm, mcnemar_exact, wilson
from tests.evaluation.asking import options, record
from tests.evaluation.scored import scored


def measured(outcomes, records=None, **changes) -> Measured:
    records = records or rows(len(outcomes))
    lines = tuple(
        {
            "id": one.id,
            "group": one.group,
            "prompt": [],
            "answer": "",
            "finish_reason": "stop",
            "reference": one.conversation[-1].content,
            "outcome": outcome,
        }
        for one, outcome in zip(records, outcomes, strict=True)
    )
    return Measured(
        tuple(outcomes), lines, **{"prompt_tokens": 10.0, "generated_tokens": 2.0, "seconds": 0.5, "cut": 0} | changes
    )


def rows(count: int, groups: str = ""):
    return tuple(record(n, f"q{n}", f"a{n}", group=groups[n] if groups else "") for n in range(count))


def right(text: str) -> list[dict]:
    return [{"exact_match": letter == "1"} for letter in text]


def results(by_method: dict[str, list[dict]], records=None, before=None, training=None, **changes):
    count = len(next(iter(by_method.values())))
    entry = Entry("task", options(), records or rows(count), **changes)
    found = {name: measured(outcomes, entry.records) for name, outcomes in by_method.items()}
    described = {name: {"description": name, "model": "m"} for name in by_method}
    return results_of(
        [entry], parse_methods(list(by_method)), ByMethod({"task": found}, described), training, 0, before
    )


BASE, FEW, TUNED = "000001" * 5, "000111" * 5, "111101" * 5
THREE = {"base": right(BASE), "few_shot": right(FEW), "sft": right(TUNED)}


def test_scores_and_all_pairs_in_the_metrics_that_both_have():
    loss = {"loss_sum": 2.0, "loss_weight": 4.0}
    with_loss = lambda text: [one | loss | {"loss_sum": float(n)} for n, one in enumerate(right(text))]
    found = results({"base": with_loss(BASE), "few_shot": right(FEW), "sft": with_loss(TUNED)})
    task = found["tasks"]["task"]
    assert (task["primary"], task["examples"], task["dropped"]) == ("exact_match", 30, 0)
    assert task["scores"]["few_shot"] == {"exact_match": wilson(15, 30).as_dict()}
    assert task["scores"]["sft"]["held_out_loss"]["value"] == pytest.approx(sum(range(30)) / 120)
    assert task["scores"]["sft"]["perplexity"]["value"] == pytest.approx(np.exp(sum(range(30)) / 120))
    pairs = [(one["first"], one["second"], one["metric"]) for one in task["comparisons"]]
    assert pairs == [
        ("base", "few_shot", "exact_match"),
        ("base", "sft", "held_out_loss"),
        ("base", "sft", "perplexity"),
        ("base", "sft", "exact_match"),
        ("few_shot", "sft", "exact_match"),
    ]
    exact = [one for one in task["comparisons"] if one["metric"] == "exact_match"]
    # Discordant pairs: 0 to 10; 20 to 0 the other way round; 20 won and 5 lost.
    assert [one["p_value"] for one in exact] == pytest.approx(
        [mcnemar_exact(0, 10), mcnemar_exact(0, 20), mcnemar_exact(5, 15)]
    )
    assert [one["p_holm"] for one in exact] == pytest.approx(holm([one["p_value"] for one in exact]))
    (of_loss,) = [one for one in task["comparisons"] if one["metric"] == "held_out_loss"]
    assert of_loss["p_holm"] == of_loss["p_value"] == 1.0
    assert found == json.loads(json.dumps(found, allow_nan=False))


def test_several_tasks_are_weighed_by_their_rows():
    cost = {"tokens": 5, "supervised_tokens": 2, "seconds": 1.0, "steps": 3, "parameters_changed": 1, "parameters": 2}
    entries = [Entry("a", options(), rows(4)), dataclasses.replace(Entry("b", options(kind="choose"), rows(2)))]
    found = {
        "a": {"sft": measured(right("1100"), prompt_tokens=10.0, cut=3)},
        "b": {"sft": measured(right("11"), prompt_tokens=40.0, generated_tokens=0.0)},
    }
    made = results_of(entries, parse_methods(["sft"]), ByMethod(found, {"sft": {"model": "m"}}), cost, 0)
    method = made["methods"]["sft"]
    assert (method["prompt_tokens"], method["requests"], method["cut_prompts"]) == (20.0, 6, 3)
    assert method["generated_tokens"] == pytest.approx(8 / 6)
    assert (method["weights"], method["training"]) == ("tuned", cost)
    assert [task["kind"] for task in made["tasks"].values()] == ["generate", "choose"]
    assert made["tasks"]["a"]["comparisons"] == []


def test_rows_that_were_left_out_are_counted_and_notes_kept():
    dropped = (DroppedRow("rows:9", "no row"),)
    made = results({"base": right("10")}, dropped=dropped)["tasks"]["task"]
    assert made["dropped"] == 1
    entry = Entry("task", options(), rows(2))
    one = measured(right("10"), notes=("Of 2 answers were cut: 2 at max_new_tokens.",))
    words = {"base": {"description": "", "model": "m"}}
    found = results_of([entry], parse_methods(["base"]), ByMethod({"task": {"base": one}}, words), None, 0)
    assert found["tasks"]["task"]["notes"] == ["base: Of 2 answers were cut: 2 at max_new_tokens."]


def test_groups_best_and_worst_and_those_that_are_too_small():
    records = rows(21, "a" * 10 + "b" * 10 + "c")
    made = results({"base": right("1" * 10 + "1000000000" + "0")}, records)["tasks"]["task"]
    table = made["details"]["base"]["by group"]["rows"]
    assert [row[:4] for row in table[:2]] == [["exact_match", "a", 10, 1.0], ["exact_match", "b", 10, 0.1]]
    assert [row[-1] for row in table[:2]] == ["best", "worst"]
    assert table[2][0] == "exact_match"
    assert table[2][2:4] == [2, pytest.approx(0.9)]
    assert made["notes"] == ["Groups with a single row are not scored apart: 1 of 3, 'c'."]
    assert "by group" not in results({"base": right("10")})["tasks"]["task"]["details"]["base"]
    alone = results({"base": right("10")}, rows(2, "ab"))["tasks"]["task"]
    assert alone["details"]["base"] == {}
    assert alone["notes"] == ["Groups with a single row are not scored apart: 2 of 2, 'a', 'b'."]


LABELS = {"labels": ["spam", "ham"]}


def test_confusion_and_bias_amplification():
    """Of spam, 2 of 3 are of w, predicted 3 of 4; of ham, 2 of 3 are of m, predicted 2 of 2."""
    references = ["spam", "spam", "spam", "ham", "ham", "ham"]
    answers = ["spam", "spam", "spam", "spam", "ham", "ham"]
    outcomes = scored("labels", answers, references, **LABELS)
    details = results({"base": outcomes}, rows(6, "wwmwmm"))["tasks"]["task"]["details"]["base"]
    confusion = details["confusion"]
    assert confusion["columns"][:3] == ["", "ham", "spam"]
    assert [row[:3] for row in confusion["rows"]] == [["ham", 2, 1], ["spam", 0, 3]]
    table = details["bias amplification"]["rows"]
    assert [row[:2] for row in table[:2]] == [["ham", "m"], ["spam", "w"]]
    assert [row[2] for row in table[:2]] == pytest.approx([2 / 3, 2 / 3])
    assert [row[3] for row in table[:2]] == pytest.approx([1, 3 / 4])
    assert table[2][0].startswith("mean [")
    assert table[2][-1] == pytest.approx((1 / 3 + 1 / 12) / 2)


@pytest.mark.parametrize(
    ("answers", "groups"),
    [
        (["spam", "spam", "ham", "ham"], "wmwm"),  # no group is over-represented
        (["what?", "what?", "what?", "what?"], "wwmm"),  # no label is ever predicted
    ],
)
def test_without_amplification_there_is_no_table(answers, groups):
    outcomes = scored("labels", answers, ["spam", "spam", "ham", "ham"], **LABELS)
    details = results({"base": outcomes}, rows(4, groups))["tasks"]["task"]["details"]["base"]
    assert "bias amplification" not in details
    assert "by group" in details


def test_rows_without_a_label_count_in_no_table():
    """Their reference is calls alone; they are of no label called None."""
    outcomes = scored("labels", ["spam", "spam", "ham", "ham"], ["spam", "spam", "ham", "ham"], **LABELS)
    outcomes += [dict.fromkeys(outcomes[0])] * 2
    details = results({"base": outcomes}, rows(6, "wwmmwm"))["tasks"]["task"]["details"]["base"]
    assert [row[0] for row in details["bias amplification"]["rows"][:-1]] == ["ham", "spam"]


def floats(*values: float) -> list[dict]:
    return [{"rouge_l": value} for value in values]


def test_how_many_rows_the_difference_would_need():
    needed = lambda first, second: results({"base": first, "sft": second})["tasks"]["task"]["examples_needed"]
    assert needed(right("1100000000"), right("1010110000")) == examples_needed(0.2, discordant=0.4)
    assert needed(right("00"), right("11")) == examples_needed(1.0, discordant=1.0)
    # Differences 0.1, 0.3, 0.2: mean 0.2, standard deviation 0.1.
    assert needed(floats(0.1, 0.2, 0.3), floats(0.2, 0.5, 0.5)) == examples_needed(0.2, deviation=0.1)
    assert results({"base": right("10")})["tasks"]["task"]["examples_needed"] is None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (right("10"), right("01")),  # no difference
        (floats(0.25, 0.5), floats(0.5, 0.75)),  # no spread
        (floats(0.5), floats(0.1)),  # a single row
        (floats(0.0, 1.0, 0.5), floats(1.0, 0.0, 0.50001)),  # millions of rows
        ([{"bleu": [1.0] * 10}] * 2, [{"bleu": [2.0] * 10}] * 2),  # no mean over rows
        (right("10"), floats(0.1, 0.2)),  # not of the same metric
    ],
)
def test_where_no_number_of_rows_can_be_said(first, second):
    assert results({"base": first, "sft": second})["tasks"]["task"]["examples_needed"] is None


def test_an_earlier_evaluation_is_compared_and_shown(tmp_path):
    out = epath.Path(tmp_path)
    earlier = results({"base": right(BASE)})
    records = rows(30)
    write_predictions(out, {"task": {"base": measured(right(BASE)).lines}})
    write_report(earlier, {}, out)
    entry = Entry("task", options(), records)
    before = read_before(out, [entry])
    assert list(before.rows["task"]) == ["base (before)"]
    made = results({"sft": right(TUNED)}, before=before)
    task = made["tasks"]["task"]
    assert [(one["first"], one["second"]) for one in task["comparisons"]] == [("sft", "base (before)")]
    assert task["scores"]["base (before)"] == {"exact_match": wilson(5, 30).as_dict()}
    assert made["methods"]["base (before)"] == earlier["methods"]["base"]
    shown = with_rows_of(before, {"task": {"sft": measured(right(TUNED)).lines}})
    assert list(shown["task"]) == ["sft", "base (before)"]
    pages = write_report(made, shown, out / "again")
    assert "base (before)" in pages[1].read_text()
    assert terminal_report(made) is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: (out / "results.json").unlink(), "holds no finished evaluation: there is no results.json"),
        (
            lambda out: (out / "predictions" / "task" / "base.jsonl").unlink(),
            "holds no predictions of these tasks: task",
        ),
        (
            lambda out: (out / "predictions" / "task" / "base.jsonl").write_text(
                '{"id": "rows:0", "reference": "a0"}\n'
            ),
            "base.jsonl is of other rows than task task has now",
        ),
    ],
)
def test_what_cannot_be_compared_with_is_refused(tmp_path, change, message):
    out = epath.Path(tmp_path)
    write_predictions(out, {"task": {"base": measured(right("10")).lines}})
    write_report(results({"base": right("10")}), {}, out)
    assert isinstance(read_before(out, [Entry("task", options(), rows(2))]), Before)
    change(out)
    with pytest.raises(ValueError, match=message):
        read_before(out, [Entry("task", options(), rows(2))])


def test_rows_of_the_same_ids_with_other_answers_are_other_rows(tmp_path):
    out = epath.Path(tmp_path)
    write_predictions(out, {"task": {"base": measured(right("10")).lines}})
    write_report(results({"base": right("10")}), {}, out)
    changed = (rows(2)[0], record(1, "q1", "another"))
    with pytest.raises(ValueError, match="is of other rows than task task has now"):
        read_before(out, [Entry("task", options(), changed)])


def test_predictions_survive_whatever_answers_hold(tmp_path):
    out, lines = epath.Path(tmp_path), measured(right("10")).lines
    lines = tuple(line | {"answer": "a\u2028b\n\ud800"} for line in lines)
    write_predictions(out, {"task": {"sft+rag": lines}})
    text = (out / "predictions" / "task" / "sft+rag.jsonl").read_text()
    assert [json.loads(line) for line in text.rstrip("\n").split("\n")] == list(lines)


def test_probes_stand_apart_and_may_fail_the_gate():
    entries = [Entry("task", options(), rows(4)), Entry("before", options(probe=True), rows(4))]
    found = {
        "task": {"base": measured(right("0000")), "sft": measured(right("1111"))},
        "before": {"base": measured(right("1111")), "sft": measured(right("1101"))},
    }
    words = {name: {"description": "", "model": "m"} for name in ("base", "sft")}
    made = results_of(entries, parse_methods(["base", "sft"]), ByMethod(found, words), None, 0)
    assert (list(made["tasks"]), list(made["forgetting"])) == (["task"], ["before"])
    assert gate(made, 0.0) is None
    assert gate(made, 0.2)["failed"] == ["before: exact_match 1.000 -> 0.750"]
    assert gate(made, 0.3)["failed"] == []


@pytest.mark.parametrize("order", [("base", "sft"), ("sft", "base"), ("base", "sft", "base (before)")])
@pytest.mark.parametrize(
    ("metric", "base", "sft", "fails"),
    [
        ("exact_match", 0.8, 0.7, True),
        ("exact_match", 0.8, 0.79, False),
        ("exact_match", 0.7, 0.8, False),
        ("held_out_loss", 1.0, 1.2, True),
        ("held_out_loss", 1.2, 1.0, False),
    ],
)
def test_the_gate_judges_the_tuned_weights_whatever_the_order(order, metric, base, sft, fails):
    values = {"base": base, "sft": sft, "base (before)": 0.0}
    scores = {name: {metric: {"value": values[name]}} for name in order}
    found = gate({"forgetting": {"chat": {"primary": metric, "scores": scores}}}, 0.05)
    assert bool(found["failed"]) == fails
    assert gate({"forgetting": {"chat": {"primary": metric, "scores": scores}}}, 0.0) is None
    assert gate({"forgetting": None}, 0.05) is None
