"""Covering arrays: every pair is there, nothing forbidden is, and few rows are enough."""

import itertools

import pytest

from tests.training.options.covering import covering_rows, pairs_in, pairs_of

SIZES = [(2, 2), (3, 3, 3), (6, 5, 4, 3, 2), (2,) * 20, (4,) * 6 + (2,) * 10]


def options_of(sizes):
    return {f"option {number}": tuple(range(size)) for number, size in enumerate(sizes)}


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_pair_is_covered_in_few_rows(sizes):
    options = options_of(sizes)
    rows = covering_rows(options)
    assert {pair for row in rows for pair in pairs_in(row)} == set(pairs_of(options))
    assert all(row.keys() == options.keys() for row in rows)
    largest = sorted(sizes)[-2:]
    assert len(rows) <= 2 * largest[0] * largest[1] + len(sizes) // 4


def test_the_pairs_of_a_table():
    pairs = set(pairs_of({"a": (1, 2), "b": ("x",)}))
    assert pairs == {(("a", 1), ("b", "x")), (("a", 2), ("b", "x"))}


def test_what_is_forbidden_is_never_made_and_hides_nothing_else():
    options = options_of((3, 3, 3, 3))
    pair, triple = {"option 0": 0, "option 1": 1}, {"option 0": 1, "option 1": 2, "option 2": 0}
    rows = covering_rows(options, [pair, triple])
    assert not any(combination.items() <= row.items() for combination in (pair, triple) for row in rows)
    covered = {pair for row in rows for pair in pairs_in(row)}
    assert set(pairs_of(options)) - covered == {tuple(sorted(pair.items()))}


def test_costly_values_are_in_no_more_rows_than_pairs_need():
    options = options_of((4, 4, 3, 3, 2, 2))
    rows, cheap = covering_rows(options), covering_rows(options, costly=["option 5"])
    assert {pair for row in cheap for pair in pairs_in(row)} == set(pairs_of(options))
    assert [row | {"option 5": 0} for row in rows] == [row | {"option 5": 0} for row in cheap]
    needed = [row for row in cheap if row["option 5"] == 1]
    assert len(needed) < len([row for row in rows if row["option 5"] == 1])
    for row in needed:  # without it a pair is missing
        others = {pair for other in cheap if other is not row for pair in pairs_in(other)}
        assert set(pairs_in(row)) - set(pairs_in(row | {"option 5": 0})) - others


def test_a_pair_that_others_exclude_is_an_error():
    """Whatever the third option is, one of the triples holds."""
    options = {"a": (0, 1), "b": (0, 1), "c": (0, 1)}
    forbidden = [{"a": 0, "b": 0, "c": value} for value in (0, 1)]
    with pytest.raises(ValueError, match=r"no row may hold \{'a': 0, 'b': 0\}"):
        covering_rows(options, forbidden)


def test_rows_are_the_same_every_time():
    options = options_of((4, 3, 3, 2))
    assert covering_rows(options) == covering_rows(dict(reversed(options.items())))
    assert len(covering_rows(options)) <= len(list(itertools.product(*options.values()))) // 4
