"""The verdict: which reason turns it, on data made for that reason."""

import dataclasses

import pytest

from sft_jax.data.checks import Finding, LearningCurve, RunPoint, verdict

HELD_OUT = [("held out", "-")]


def varied(count):
    return [(f"question {n}", f"answer {n}") for n in range(count)]


def finding(check, severity="warning", count=1, **numbers):
    return Finding(check, severity, f"{check} says", count, numbers=numbers)


def facts(question):
    return [(question(n), " ".join(f"fact{n}x{word}" for word in range(60))) for n in range(100)]


@pytest.mark.parametrize(
    ("pairs", "findings", "decision", "words"),
    [
        (varied(49), [], "prompt_or_retrieval_first", "49 rows are fewer than 50"),
        (varied(50), [], "tune", "50 rows: enough for one narrow task"),
        (varied(1000), [], "tune", "1,000 rows are enough"),
        ([(f"q{n}", f"l{n % 20}") for n in range(140)], [], "prompt_or_retrieval_first", "20 of 20 labels have fewer"),
        ([(f"q{n}", f"l{n % 10}") for n in range(140)], [], "tune", "10 labels, 14 rows of the middle one"),
        ([(f"q{n}", "yes") for n in range(140)], [], "clean_first", "the same label"),
        (varied(100), [finding("exact_duplicates", copies=31)], "clean_first", "31% of the rows repeat"),
        (varied(100), [finding(f"{kind}_duplicates", copies=16) for kind in ("exact", "near")], "clean_first", "32%"),
        (varied(100), [finding("near_duplicates", copies=5)], "tune", "5.0% of the rows repeat"),
        (varied(100), [finding("contradictions", rows=40)], "tune", "40.0% of the rows have a prompt that is answered"),
        ([(f"q{n}", f"l{n % 9}") for n in range(100)], [finding("contradictions", rows=6)], "clean_first", "contrad"),
        (varied(100), [finding("loose_overlap", count=2, measured=100)], "clean_first", "loose_overlap says (2.0%)"),
        (varied(100), [finding("loose_overlap", count=1, measured=100)], "tune", "loose_overlap says (1.0%)"),
        (varied(100), [finding("keys", "error")], "clean_first", "keys says"),
        (varied(100), [finding("keys", "warning")], "tune", "100 rows"),
        (varied(100), [finding("agreement", question="q", kappa=0.59)], "clean_first", "kappa 0.59, below 0.6"),
        (varied(100), [finding("agreement", "info", question="q", kappa=0.6)], "tune", "kappa 0.60"),
        (facts(lambda n: f"What is the {n}?" if n % 3 else f"{n}"), [], "prompt_or_retrieval_first", "retrieval"),
        (facts(lambda n: f"{n} say more, please"), [], "tune", "100 rows"),
        ([(answer, answer) for _, answer in facts(str)], [], "tune", "100 rows"),
    ],
)  # fmt: skip
def test_decisions(subject, records, pairs, findings, decision, words):
    made = verdict(subject(*pairs, held_out_records=records(*HELD_OUT, file="h")), findings)
    assert made.decision == decision
    assert made.reasons[0].favours == decision
    assert any(words in reason.text for reason in made.reasons if reason.favours == decision), made.reasons


def test_the_gravest_reason_decides_and_all_are_listed(subject):
    made = verdict(subject(*varied(10)), [finding("keys", "error")])
    assert made.decision == "prompt_or_retrieval_first"
    assert [reason.favours for reason in made.reasons] == ["prompt_or_retrieval_first", "tune", "clean_first"]
    assert "no held-out rows" in made.reasons[1].text


@pytest.mark.parametrize(
    ("gain", "error", "words"),
    [
        (0.1, 0.02, "5.0% ± 2.0%: more data still helps"),
        (0.0, 0.005, "no longer helps"),
        (0.02, 0.02, "cannot be told"),
        (0.1, None, "5.0%; too few sizes"),
    ],
)
def test_learning_curve(subject, gain, error, words):
    curve = LearningCurve((RunPoint(100, 3.0), RunPoint(200, 2.0)), gain, error)
    without, with_curve = verdict(subject(*varied(60)), []), verdict(subject(*varied(60)), [], curve)
    (reason,) = set(with_curve.reasons) - set(without.reasons)
    assert words in reason.text
    assert "3.000 at 100 rows, 2.000 at 200 rows" in reason.text


def test_rows_that_are_dropped_do_not_count(subject):
    made = subject(*varied(60))
    few = dataclasses.replace(made, rows=type(made.rows).from_rows([([1, 2], [0, 1])], ["a:1"]))
    assert verdict(few, []).decision == "prompt_or_retrieval_first"
