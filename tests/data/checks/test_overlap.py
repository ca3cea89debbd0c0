"""Rows that are trained on and measured on."""

import pytest

from sft_jax.data.checks.overlap import exact_overlap

TRAIN = [("Where is my card?", "card"), ("Is it open?", "hours")]


@pytest.mark.parametrize(
    ("held_out", "found"),
    [
        ([("Where is my cat?", "card")], []),
        ([("x", "y"), ("Where is my card?", "other"), ("\nIs it open? ", "hours")], ["h:2", "h:3"]),
        ([("where is my card?", "card")], []),  # not the same text: what is alike is another finding
    ],
)
def test_held_out_rows(subject, records, shown, held_out, found):
    seen = exact_overlap(subject(*TRAIN, held_out_records=records(*held_out, file="h")))
    assert [row for one in seen for row in shown(one)] == found
    assert [one.share for one in seen] == [len(found) / len(held_out)] * bool(found)


def test_benchmarks_by_name(subject, records):
    benchmarks = {"ours": records(("Is it open?", "-"), file="o"), "theirs": records(("no", "-"), file="t")}
    (seen,) = exact_overlap(subject(*TRAIN, benchmarks=benchmarks))
    assert seen.title == "1 prompts of ours are also in the training data"
    assert seen.examples == (("o:1", "also a:2: Is it open?"),)
