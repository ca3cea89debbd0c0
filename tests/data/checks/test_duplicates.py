"""Exact copies and contradictions."""

import pytest

from sft_jax.data.checks.duplicates import contradictions, exact_duplicates, repeated


@pytest.mark.parametrize(
    ("pairs", "copies", "first"),
    [
        ([("q", "a"), ("q", "b"), ("r", "a")], 0, []),
        ([("q", "a"), ("r", "a"), ("q", "a"), ("q", "a")], 2, ["a:1"]),
        ([("q", "a"), (" q\n", "a ")], 1, ["a:1"]),  # white space around a text says nothing
        ([("q", "a"), ("Q", "a")], 0, []),
        ([("q", "a"), ("r", "b"), ("r", "b"), ("q", "a")], 2, ["a:1", "a:2"]),
    ],
)
def test_exact_duplicates(subject, shown, pairs, copies, first):
    found = exact_duplicates(subject(*pairs))
    assert sum(seen.count for seen in found) == copies
    assert [row for seen in found for row in shown(seen)] == first
    assert all(seen.share == copies / len(pairs) for seen in found)


@pytest.mark.parametrize(
    ("pairs", "rows", "first"),
    [
        ([("q", "a"), ("q", "a"), ("r", "b")], 0, []),
        ([("q", "a"), ("r", "b"), ("q", "b"), ("q", "b")], 3, ["a:1"]),
        ([("q", "a"), ("q ", " a")], 0, []),
    ],
)
def test_contradictions(subject, shown, pairs, rows, first):
    found = contradictions(subject(*pairs))
    assert sum(seen.count for seen in found) == rows
    assert [row for seen in found for row in shown(seen)] == first


def test_a_contradiction_names_both_rows(subject):
    (seen,) = contradictions(subject(("q", "a"), ("q", "b")))
    assert seen.examples[0].text == "a:1: 'a' | a:2: 'b', asked: q"
    assert seen.numbers == {"prompts": 1, "rows": 2}


def test_repeated():
    assert repeated("abcab") == [[0, 3], [1, 4]]
