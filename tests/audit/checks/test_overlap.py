"""Rows that are trained on and measured on."""

import json

import pytest

from sft_jax.audit.checks.overlap import exact_overlap, loose_overlap, ngram_overlap
from sft_jax.data.similarity.ngrams import Shared, shared_ngrams, texts_with_ngrams_of

TRAIN = [("Where is my card?", "card"), ("Is it open?", "hours")]
COUNTING = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
NUMBERS = COUNTING.split()


@pytest.mark.parametrize(
    ("held_out", "exact", "loose"),
    [
        ([("Where is my cat?", "card")], [], []),
        ([("x", "y"), ("Where is my card?", "other"), ("\nIs it open? ", "hours")], ["h:2", "h:3"], []),
        ([("where  is my card", "card"), ("Is it open?", "-")], ["h:2"], ["h:1"]),
    ],
)
def test_held_out_rows(checked, records, shown, held_out, exact, loose):
    made = checked(*TRAIN, held_out_records=records(*held_out, file="h"))
    for check, expected in ((exact_overlap, exact), (loose_overlap, loose)):
        seen = check(made)
        assert [row for one in seen for row in shown(one)] == expected
        assert [one.share for one in seen] == [len(expected) / len(held_out)] * bool(expected)


def test_benchmarks_by_name(checked, records):
    benchmarks = {"ours": records(("Is it open?", "-"), file="o"), "theirs": records(("no", "-"), file="t")}
    (seen,) = exact_overlap(checked(*TRAIN, benchmarks=benchmarks))
    assert seen.title == "1 prompt of ours is also in the training data"
    assert seen.examples == (("o:1", "also a:2: Is it open?"),)


def test_a_prompt_template_does_not_hide_or_make_overlap(checked, records):
    template = "Answer the question of a customer, in one word, as quickly and as kindly as you can: {} Answer:"
    train = [(template.format(f"\n{word}?"), word) for word in NUMBERS]
    held_out = records((template.format("two?"), "two"), (template.format("twenty?"), "-"), file="h")
    made = checked(*train, held_out_records=held_out)
    (seen,) = exact_overlap(made)
    assert seen.examples == (("h:1", "also a:2: two?"),)
    assert ngram_overlap(made) == []


def text(*numbers):
    return " ".join(NUMBERS[number] for number in numbers)


@pytest.mark.parametrize(
    ("train", "measured", "expected"),
    [
        (["x " + text(*range(13)) + " y"], text(*range(13)), Shared(0, 1.0)),
        (["-", text(*range(16))], text(*range(14)) + " end", Shared(1, 2 / 3)),  # 2 of its 3 13-grams
        ([text(*range(12))], text(*range(14)), None),  # 12 words in a row are not 13
        (["so " + text(*range(9))], text(*range(9)), Shared(0, 1.0)),  # a prompt of 9 words is one 9-gram
        ([text(*range(9))], text(*range(7)), None),  # too short to tell
        ([text(*range(13))] * 10, text(*range(13)), Shared(0, 1.0)),
        ([text(*range(13))] * 11, text(*range(13)), None),  # a common phrase
        ([text(*range(13)) + " " + text(*range(13))] * 10, text(*range(13)), Shared(0, 1.0)),  # a row counts once
        ([text(*range(13)).upper() + "!"], text(*range(13)), Shared(0, 1.0)),
    ],
)
def test_shared_ngrams(train, measured, expected):
    assert shared_ngrams(train, [measured]) == [expected]
    assert shared_ngrams(train, ["a b", measured, ""]) == [None, expected, None]


def test_training_texts_with_ngrams_of_what_is_measured():
    train = ["-", "x " + text(*range(13)), text(*range(12)), text(*range(3, 16)), *["so " + text(*range(9))] * 11]
    measured = ["a b", text(*range(14)), text(*range(1, 16)), text(*range(9))]
    assert texts_with_ngrams_of(train, measured) == {1: 1, 3: 2}
    assert texts_with_ngrams_of(train[:5], measured) == {1: 3, 2: 3, 3: 2, 4: 3}  # the 9-gram is rare there
    assert texts_with_ngrams_of(train, ["a b"]) == texts_with_ngrams_of([], measured) == {}


def test_ngram_overlap_leaves_out_whole_rows_and_sorts(checked, records):
    train = [(text(*range(14)), "a"), ("q", "It is " + text(*range(2, 16)))]
    held_out = [(text(*range(14)), "-"), (text(*range(2, 15)) + " x y z", "-"), (text(*range(2, 15)), "-")]
    (seen,) = ngram_overlap(checked(*train, held_out_records=records(*held_out, file="h")))
    assert [place.row_id for place in seen.examples] == ["h:3", "h:2"]
    assert seen.examples[0].text.startswith("also a:2 (100% of its n-grams): ")
    assert json.loads(json.dumps(seen.numbers)) == {"measured": 3, "found": 2, "more_than_half_shared": 1}
