"""The verdict: which reason decides it, on data made for that reason."""

import dataclasses

import pytest

from sft_jax.audit.checks import Finding, LearningCurve, RunPoint
from sft_jax.audit.verdict import verdict
from sft_jax.data.tokenized import DroppedRow

HELD_OUT = [("held out", "-")]


def varied(count):
    return [(f"question {n}", f"answer {n}") for n in range(count)]


def finding(check, severity="warning", count=1, **numbers):
    return Finding(check, severity, f"{check} says", count, numbers=numbers)


@pytest.mark.parametrize(
    ("pairs", "findings", "decision", "words"),
    [
        (varied(9), [], "ready", "9 examples with 18 trained tokens"),
        ([(f"q{n}", f"l{n % 20}") for n in range(140)], [], "ready", "20 labels, 20 of them with fewer than 8 rows; 7"),
        ([(f"q{n}", f"l{n % 10}") for n in range(140)], [], "ready", "10 labels; 14 rows of the middle one"),
        ([(f"q{n}", "yes") for n in range(140)], [], "clean_first", "the same label"),
        (varied(100), [finding("exact_duplicates", copies=31)], "clean_first", "31% of the rows repeat"),
        (varied(100), [finding(f"{kind}_duplicates", copies=16) for kind in ("exact", "near")], "clean_first", "32%"),
        (varied(100), [finding("near_duplicates", copies=5)], "ready", "5.0% of the rows repeat"),
        (varied(100), [finding("contradictions", rows=40)], "ready", "40.0% of the rows have a prompt that is"),
        ([(f"q{n}", f"l{n % 9}") for n in range(100)], [finding("contradictions", rows=6)], "clean_first", "contrad"),
        (varied(100), [finding("loose_overlap", count=2, measured=100)], "clean_first", "loose_overlap says (2.0%)"),
        (varied(100), [finding("loose_overlap", count=1, measured=100)], "ready", "loose_overlap says (1.0%)"),
        (varied(100), [finding("keys", "error")], "clean_first", "keys says"),
        (varied(100), [finding("keys", "warning")], "ready", "100 examples"),
        (varied(100), [finding("agreement", question="q", kappa=0.59)], "clean_first", "kappa 0.59, below 0.6"),
        (varied(100), [finding("agreement", "info", question="q", kappa=0.6)], "ready", "kappa 0.60"),
    ],
)  # fmt: skip
def test_decisions(checked, records, pairs, findings, decision, words):
    made = verdict(checked(*pairs, held_out_records=records(*HELD_OUT, file="h")), findings)
    assert made.decision == decision
    assert made.reasons[0].favours == decision
    assert any(words in reason.text for reason in made.reasons if reason.favours == decision), made.reasons


def test_any_reason_to_clean_decides_and_all_reasons_are_listed(checked):
    made = verdict(checked(*varied(10)), [finding("keys", "error")])
    assert made.decision == "clean_first"
    assert [reason.favours for reason in made.reasons] == ["clean_first", "ready", "ready"]
    assert "no held-out rows" in made.reasons[2].text


@pytest.mark.parametrize(
    "pairs",
    [
        # A role-play set: long answers of which little is in the prompt, to prompts that begin alike.
        [(f"Imagine you are figure {n}.", " ".join(f"w{n}x{word}" for word in range(60))) for n in range(100)],
        # Receipts: capitals and digits.
        [(f"READ: 0{n}7 QTY 1 @ 4.{n:02} SUBTTL 9.{n:02}", f"TOTAL: {n}.99 CASH") for n in range(100)],
    ],
)
def test_how_rows_are_worded_gives_no_reason(checked, pairs):
    made, plain = (verdict(checked(*some), []) for some in (pairs, varied(100)))
    assert made == plain


@pytest.mark.parametrize(
    ("gain", "error", "words"),
    [
        (0.1, 0.02, "5.0% ± 2.0%: more data still helps"),
        (0.0, 0.005, "no longer helps"),
        (0.02, 0.02, "cannot be told"),
        (0.1, None, "5.0%; too few sizes"),
    ],
)
def test_learning_curve(checked, gain, error, words):
    curve = LearningCurve((RunPoint(100, 3.0), RunPoint(200, 2.0)), gain, error)
    without, with_curve = verdict(checked(*varied(60)), []), verdict(checked(*varied(60)), [], curve)
    (reason,) = set(with_curve.reasons) - set(without.reasons)
    assert words in reason.text
    assert "3.000 at 100 examples, 2.000 at 200 examples" in reason.text


def test_dropped_rows_do_not_count_and_their_share_is_said(checked):
    made = checked(*varied(60))
    examples = type(made.examples).from_examples([([1, 2], [0, 1])] * 57, [f"a:{n}" for n in range(4, 61)])
    few = dataclasses.replace(made, examples=examples, dropped=[DroppedRow(f"a:{n}", "too long") for n in (1, 2, 3)])
    texts = [reason.text for reason in verdict(few, []).reasons]
    assert texts[:2] == ["57 examples with 57 trained tokens", "5.0% of the rows that were read are dropped"]
