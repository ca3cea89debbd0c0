"""What is shown on the page, and that it says so."""

import pytest

from sft_jax.audit.checks import Finding, Place
from sft_jax.audit.preview.selection import chosen, select_examples, within_bytes
from sft_jax.data.records import DroppedRow


@pytest.mark.parametrize(
    ("count", "named", "wanted", "expected"),
    [
        (3, [], 5, [0, 1, 2]),
        (10, [3], 4, [0, 3, 5, 9]),
        (10, [3, 3, 4], 2, [3, 4]),
        (10, [1, 2, 3], 2, [1, 2]),
        (4, [], 1, [0]),
    ],
)
def test_chosen(count, named, wanted, expected):
    assert chosen(count, named, wanted) == expected


@pytest.mark.parametrize("wanted", range(1, 12))
def test_as_many_as_wanted(wanted):
    assert len(set(chosen(11, [4, 5], wanted))) == wanted


def test_bytes_are_bounded():
    examples = [{"id": "x" * 100}] * 10
    assert len(within_bytes(examples, 350)) == 3


def test_all_rows_where_they_are_few(renderer, record, checked):
    made = checked([record(n) for n in (1, 2)], held_out_records=[record(1, file="h")])
    removed = [(record(3), DroppedRow("t:3", "step: why"))]
    page = select_examples(made, renderer, removed, [], {}, 20)
    assert [(example["id"], example["kind"]) for example in page.examples] == [
        ("t:1", "trained"),
        ("t:2", "trained"),
        ("t:3", "dropped"),
        ("h:1", "held out"),
    ]
    assert page.note == "All rows are on this page: 2 of 2 trained, 1 of 1 dropped, 1 of 1 held out."


def test_rows_that_findings_name_are_there(renderer, record, checked):
    records = [record(n, "a" * (150 if n in (33, 57) else 1)) for n in range(100)]
    made = checked(records, held_out_records=[record(n, file="h") for n in range(50)])
    finding = Finding("c", "warning", "title", 2, (Place("h:41", "also t:58: text"), Place("t:61", "text")))
    page = select_examples(made, renderer, [], [finding], {}, 40)
    ids = {example["id"] for example in page.examples}
    assert {"t:58", "t:61", "h:41", "t:33", "t:57"} <= ids
    assert page.shown == {"trained": (40, 100), "dropped": (0, 0), "held out": (4, 50)}
    assert page.note.startswith("On this page: 40 of 100 trained, 4 of 50 held out.")
    assert "--rows=N puts more on it" in page.note
    more = select_examples(made, renderer, [], [finding], {}, 100)
    assert len(more.examples) > len(page.examples)
    assert more.shown["trained"] == (100, 100)
