"""Near duplicates and overlap: what the checks find is gone after the step."""

import pytest

from sft_jax.audit.checks import CheckedData
from sft_jax.audit.checks.near_duplicates import near_duplicates
from sft_jax.audit.checks.overlap import exact_overlap, loose_overlap, ngram_overlap
from sft_jax.data.cleaning import Context
from sft_jax.data.conversations import TokenExample
from sft_jax.data.records import Record
from sft_jax.data.tokenized import TokenizedExamples

LONG = "a customer would like to know whether the parcel that was sent last week can still be picked up at the counter"
TEXTS = [LONG, f"{LONG}?", "something else entirely, of which there is no other", LONG.upper(), "short", "Short!"]


def names(records):
    return "".join(record.id[2:] for record in records)


def checked_data(records, held_out=()):
    return CheckedData(records, TokenizedExamples.from_examples([], []), held_out_records=held_out)


def test_near_duplicates(record, clean):
    records = [record("a", text, f"t:{n}") for n, text in enumerate(TEXTS)]
    kept, log = clean(records, "drop_near_duplicates")
    assert names(kept) == "024"  # in the words that make records alike, case and punctuation do not count
    assert [(row.id, row.detail) for row in log.dropped] == [("t:1", "t:0"), ("t:3", "t:0"), ("t:5", "t:4")]
    assert near_duplicates(checked_data(records)) != []
    assert near_duplicates(checked_data(kept)) == []


ASKED = ["Where is it?", "where is it", LONG, f"He said: {LONG}", "Where is it", "Where?", f"{LONG[:90]} or not", "no"]


def test_near_duplicates_of_other_labels_stay(record, clean):
    """Enough short answers that repeat are labels; then prompts are compared, and records of one label dropped."""
    other = [f"{letter * 9} is number {n} of the questions" for n, letter in enumerate("bcdefghijklmnopqrstuv")]
    records = [record("ab"[n % 2], text, f"t:{n}") for n, text in enumerate(other)]
    records += [record("a", LONG, "x:0"), record("b", f"{LONG}?", "x:1"), record("a", LONG.upper(), "x:2")]
    kept, log = clean(records, "drop_near_duplicates")
    assert [(row.id, row.detail) for row in log.dropped] == [("x:2", "x:0")]
    assert len(kept) == len(records) - 1


OVERLAP = [("exact", "134567"), ("words", "3567"), ("ngrams", "57")]


@pytest.mark.parametrize(("how", "left"), OVERLAP)
@pytest.mark.parametrize(("step", "field"), [("held_out", "held_out"), ("benchmark", "benchmarks")])
def test_overlap(record, clean, how, left, step, field):
    records = [record("a", text, f"t:{n}") for n, text in enumerate(ASKED)]
    measured = [record("b", text, f"h:{n}") for n, text in enumerate(["Where is it?", LONG])]
    kept, log = clean(records, f"drop_{step}_overlap={how}", context=Context(**{field: measured}))
    assert names(kept) == left
    assert {row.detail for row in log.dropped} == {"h:0", "h:1"}
    checks = {"exact": [exact_overlap], "words": [exact_overlap, loose_overlap]}
    for check in checks.get(how, [exact_overlap, loose_overlap, ngram_overlap]):
        assert check(checked_data(kept, measured)) == []


def test_the_same_records_twice(record, clean):
    """axolotl takes records that are trained on out of the measured ones; here the measured ones are not trained."""
    records = [record("a", text, f"t:{n}") for n, text in enumerate(["Who?", "Why?", "Who?"])]
    kept, log = clean(records, "drop_held_out_overlap=exact", context=Context(held_out=records))
    assert kept == []
    assert [row.id for row in log.dropped] == ["t:0", "t:1", "t:2"]


def test_nothing_measured(record, clean):
    records = [record("a", text, f"t:{n}") for n, text in enumerate(TEXTS)]
    assert clean(records, "drop_held_out_overlap", "drop_benchmark_overlap")[0] == records


def test_tokens_have_no_text(clean):
    records = [Record(f"t:{n}", TokenExample([1, 2], [0.0, 1.0]), {}) for n in range(2)]
    context = Context(held_out=records)
    assert clean(records, "drop_near_duplicates", "drop_held_out_overlap", context=context)[0] == records
