"""The report as tables of text."""

import pytest

from sft_jax.evaluation.report.tables import (
    TextTable,
    changed_text,
    count_text,
    duration_text,
    metrics_shown,
    report_sections,
    training_text,
    visible,
)
from tests.evaluation.report.made_results import EVIL, comparison, everything, method, results_of, score, task


def section(results, name):
    (found,) = [section for section in report_sections(results) if section.name == name]
    return found


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (7, "7"), (999, "999"), (999.6, "1k"), (12_345, "12.3k"), (1_234_567, "1.23M"), (2.5e9, "2.5G")],
)
def test_counts(count, text):
    assert count_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "0.25 s"), (4.21, "4.2 s"), (42, "42 s"), (412, "7 min"), (7_200, "2.0 h")]
)
def test_durations(seconds, text):
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("described", "training", "changed"),
    [
        (method(), "none", "none"),
        (method("tuned"), "1.23M, 7 min", "1 %"),
        (method("tuned", training=None), "unknown", "unknown"),
    ],
)
def test_what_training_took(described, training, changed):
    assert training_text(described) == training
    assert changed_text(described) == changed


@pytest.mark.parametrize(
    ("cells", "is_numeric"),
    [
        (("0.712 [0.640, 0.781]", "-"), True),
        (("+0.5 [-0.1, +0.9]", "1,234"), True),
        (("< 0.001", "0.042"), True),
        (("0.89 %", "1e-05"), True),
        (("yes", "0.5"), False),
        (("2 rows",), False),
        (("-", "-"), False),
    ],
)
def test_columns_of_numbers(cells, is_numeric):
    assert TextTable("", ("a",), tuple((cell,) for cell in cells)).is_numeric(0) is is_numeric


def test_what_cannot_be_seen_is_written_as_code_points():
    assert visible("a\u202eb\ud800c\x07\n\té👩‍🚀") == "a\\u202eb\\ud800c\\u0007\n\té👩‍🚀"


def test_the_primary_metric_stands_first():
    described = task({"a": {"x": score(1.0)}, "b": {"y": score(1.0), "p": score(1.0)}}, primary="p")
    assert metrics_shown(described) == ["p", "x", "y"]


def test_every_part_that_was_measured_has_a_section():
    names = [section.name for section in report_sections(everything())]
    assert names == ["task extraction", "methods", "retrieval", "forgetting arithmetic", "gate", "divergence", "drift"]
    smallest = results_of({"base": "base"}, {"t": task({"base": 0.5})})
    assert [section.name for section in report_sections(smallest)] == ["task t", "methods"]


def test_a_task_with_everything():
    found = section(everything(), "task extraction")
    assert found.facts[:3] == ("60 rows of held_out.jsonl", "primary metric: exact match", "2 rows left out")
    assert found.verdicts == (
        "sft, exact match: better than base (+0.400, p < 0.001); WORSE than rag (-0.200, p = 0.010)",
    )
    scores, primary, others, confusion = found.tables
    assert scores.columns == ("method", "exact match", "held-out loss")
    assert scores.rows == (
        ("base", "0.100 [0.000, 0.200]", "-"),
        ("rag", "0.700 [0.600, 0.800]", "-"),
        ("sft", "0.500 [0.400, 0.600]", "0.750"),
    )
    assert primary.rows[1] == (
        *("sft", "rag", "exact match", "-0.200 [-0.300, -0.100]", "0.005", "0.010", "exact McNemar", "WORSE"),
    )
    assert [row[-1] for row in others.rows] == ["better"]  # a loss that fell
    assert (confusion.title, confusion.rows) == ("sft: confusion", (("yes", "12", "1"), ("no", "0", "0.5")))
    assert [table.is_detail for table in found.tables] == [False, False, True, True]
    assert found.notes == ("The best untrained method here is rag, by these very rows, which favours it.", "A note.")


def test_that_lower_is_better_is_said():
    described = task({"base": {"held_out_loss": score(2.0)}}, primary="held_out_loss")
    assert "lower is better" in section(results_of({"base": "base"}, {"t": described}), "task t").facts
    assert "lower is better" not in section(everything(), "task extraction").facts


def test_no_comparisons_no_table_of_them():
    found = section(results_of({"base": "base"}, {"t": task({"base": 0.5})}), "task t")
    assert [table.title for table in found.tables] == ["Scores"]
    assert found.notes == ()


def test_drift_has_a_row_for_each_layer():
    (table,) = section(everything(), "drift").tables
    assert table.columns == ("layer", "attention", "mlp")
    assert table.rows == (("0", "0", "0"), ("1", "0.01", "0.01"), ("2", "0.02", "0.02"))


def test_methods_that_were_not_scored_are_left_out_of_a_task():
    results = results_of({"base": "base", "sft": "tuned"}, {EVIL: task({"sft": 0.5}, [comparison("a", "b", 0.1, 0.5)])})
    scores, _ = section(results, f"task {EVIL}").tables
    assert [row[0] for row in scores.rows] == ["sft"]
