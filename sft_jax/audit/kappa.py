"""Agreement of annotators beyond chance: Cohen's kappa for two, Fleiss' for several."""

import collections
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int64

Ratings = Int64[np.ndarray, "subjects categories"]


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float:
    """(p - e) / (1 - e) of two annotators' labels of the same rows (Cohen 1960).

    p is the share of rows on which they agree, e what chance would give annotators who use labels as often as they do.
    1 is agreement on all rows, 0 what chance gives; where both use a single label, the same, it is 1.

    Raises:
        ValueError: no rows, or not the same number from both.
    """
    if not first or len(first) != len(second):
        raise ValueError(f"Two annotators must have labelled the same rows, got {len(first)} and {len(second)} labels.")
    rows = len(first)
    agreed = sum(a == b for a, b in zip(first, second, strict=True)) / rows
    counts = collections.Counter(first), collections.Counter(second)
    chance = sum(counts[0][label] * counts[1][label] for label in counts[0]) / rows**2
    return _beyond_chance(agreed, chance)


def fleiss_kappa(ratings: Ratings) -> float:
    """Kappa of several annotators (Fleiss 1971), who need not be the same for every row.

    Rows may have different numbers of labels, two at least (Fleiss, Levin and Paik 2003): agreement is the mean over
    rows of the share of pairs of annotators that agree, chance that of two labels drawn from all.

    Args:
        ratings: how many annotators gave row i the label j.

    Raises:
        ValueError: no rows, or a row with fewer than two labels.
    """
    per_row = ratings.sum(axis=1)
    if not len(ratings) or (per_row < 2).any():
        raise ValueError("Agreement needs rows with two labels or more each.")
    pairs = (ratings * (ratings - 1)).sum(axis=1) / (per_row * (per_row - 1))
    shares = ratings.sum(axis=0) / ratings.sum()
    return _beyond_chance(float(pairs.mean()), float((shares**2).sum()))


def _beyond_chance(agreed: float, chance: float) -> float:
    return 1.0 if chance == 1.0 else (agreed - chance) / (1 - chance)


def ratings_table(rows: Sequence[Sequence[str]]) -> tuple[Ratings, list[str]]:
    """Labels of each row as counts, and the names of the columns."""
    labels = sorted({label for row in rows for label in row})
    column = {label: number for number, label in enumerate(labels)}
    table = np.zeros((len(rows), len(labels)), np.int64)
    for number, row in enumerate(rows):
        for label in row:
            table[number, column[label]] += 1
    return table, labels


def confusions(rows: Sequence[Sequence[str]]) -> Mapping[tuple[str, str], int]:
    """How often two annotators of a row chose a certain pair of different labels, the most frequent pair first."""
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    for row in rows:
        for number, one in enumerate(row):
            for other in row[number + 1 :]:
                if one != other:
                    counts[min(one, other), max(one, other)] += 1
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
