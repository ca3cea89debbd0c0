"""Kappa against published worked examples."""

import numpy as np
import pytest

from sft_jax.audit.kappa import cohen_kappa, confusions, fleiss_kappa, ratings_table

# The table that textbooks work through for Fleiss' kappa: 10 rows, 14 annotators, 5 labels; kappa = 0.210.
FLEISS_TEXTBOOK = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]
# Fleiss 1971, table 1: 30 psychiatric patients, 6 diagnoses each; kappa = 0.430.
FLEISS_1971 = [
    [0, 0, 0, 6, 0], [0, 3, 0, 0, 3], [0, 1, 4, 0, 1], [0, 0, 0, 0, 6], [0, 3, 0, 3, 0],
    [2, 0, 4, 0, 0], [0, 0, 4, 0, 2], [2, 0, 3, 1, 0], [2, 0, 0, 4, 0], [0, 0, 0, 0, 6],
    [1, 0, 0, 5, 0], [1, 1, 0, 4, 0], [0, 3, 3, 0, 0], [1, 0, 0, 5, 0], [0, 2, 0, 3, 1],
    [0, 0, 5, 0, 1], [3, 0, 0, 1, 2], [5, 1, 0, 0, 0], [0, 2, 0, 4, 0], [1, 0, 2, 0, 3],
    [0, 0, 0, 0, 6], [0, 1, 0, 5, 0], [0, 2, 0, 1, 3], [2, 0, 0, 4, 0], [1, 0, 0, 4, 1],
    [0, 5, 0, 1, 0], [4, 0, 0, 0, 2], [0, 2, 0, 4, 0], [1, 0, 5, 0, 0], [0, 0, 0, 0, 6],
]  # fmt: skip


def pairs(table):
    """Labels of two annotators from a table of counts: {("yes", "no"): 5} is 5 rows that the second calls no."""
    labels = [pair for pair, count in table.items() for _ in range(count)]
    return [first for first, _ in labels], [second for _, second in labels]


@pytest.mark.parametrize(
    ("table", "kappa"),
    [
        ({("yes", "yes"): 20, ("yes", "no"): 5, ("no", "yes"): 10, ("no", "no"): 15}, 0.4),
        ({("yes", "yes"): 45, ("yes", "no"): 15, ("no", "yes"): 25, ("no", "no"): 15}, 0.1304),
        ({("yes", "yes"): 25, ("yes", "no"): 35, ("no", "yes"): 5, ("no", "no"): 35}, 0.2593),
        ({("a", "a"): 3, ("b", "b"): 4}, 1.0),
        ({("a", "b"): 1, ("b", "a"): 1}, -1.0),
        ({("a", "a"): 5}, 1.0),
    ],
)
def test_cohen(table, kappa):
    assert cohen_kappa(*pairs(table)) == pytest.approx(kappa, abs=5e-5)


@pytest.mark.parametrize(
    ("table", "kappa"),
    [(FLEISS_TEXTBOOK, 0.210), (FLEISS_1971, 0.430), ([[2, 0], [0, 3]], 1.0), ([[4, 0]], 1.0)],
)
def test_fleiss(table, kappa):
    assert fleiss_kappa(np.array(table)) == pytest.approx(kappa, abs=5e-4)


@pytest.mark.parametrize("table", [[], [[1, 0]], [[2, 0], [0, 1]]])
def test_rows_with_one_label_have_no_agreement(table):
    with pytest.raises(ValueError, match="two labels or more"):
        fleiss_kappa(np.array(table, np.int64).reshape(-1, 2))


def test_cohen_needs_the_same_rows():
    with pytest.raises(ValueError, match="2 and 1 labels"):
        cohen_kappa(["a", "b"], ["a"])


def test_tables_and_confusions():
    rows = [["a", "b"], ["b", "a", "c"], ["c", "c"]]
    table, labels = ratings_table(rows)
    assert labels == ["a", "b", "c"]
    assert table.tolist() == [[1, 1, 0], [1, 1, 1], [0, 0, 2]]
    assert confusions(rows) == {("a", "b"): 2, ("a", "c"): 1, ("b", "c"): 1}
