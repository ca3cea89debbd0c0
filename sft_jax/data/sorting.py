"""Orders of the numbers of millions of rows, as int32: shuffled ones, and those of a small number each row has.

Serves packing and the plan.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int32, Int64, Integer, UInt64

BLOCK_ROWS = 1 << 16  # rows that are looked at together

RowNumbers = Int32[np.ndarray, "_"]


def row_numbers(count: int) -> RowNumbers:
    """Room for the numbers of so many rows.

    Raises:
        ValueError: a number would not fit into int32.
    """
    most = np.iinfo(np.int32).max
    if count > most:
        raise ValueError(f"{count:,} rows cannot be ordered together: at most {most:,}. Train on a part of the data.")
    return np.empty(count, np.int32)


def blocks(count: int, size: int = 0) -> Iterator[slice]:
    """Slices that together are range(count), each of `size`; 0 for `BLOCK_ROWS`."""
    size = size or BLOCK_ROWS
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def permutation(count: int, *key: int) -> RowNumbers:
    """A shuffled range(count), the same in every NumPy version (raw bit streams are guaranteed, `shuffle` is not)."""
    order = row_numbers(count)
    order[:] = np.argsort(_hashes(count, key), kind="stable")
    return order


def begin_of_permutation(count: int, wanted: int, *key: int) -> Int64[np.ndarray, "wanted"]:
    """The first `wanted` of `permutation(count, *key)`, without sorting the rest."""
    hashes = _hashes(count, key)
    if wanted >= count:
        return np.argsort(hashes, kind="stable")
    rows = np.flatnonzero(hashes <= np.partition(hashes, wanted)[wanted])
    return rows[np.argsort(hashes[rows], kind="stable")][:wanted]


def _hashes(count: int, key: tuple[int, ...]) -> UInt64[np.ndarray, "count"]:
    return np.random.PCG64(np.random.SeedSequence(key)).random_raw(count)


def by_number(numbers: Integer[np.ndarray, "rows"], names: RowNumbers | None = None) -> RowNumbers:
    """The rows in the order of a number each has, those of one number in their own order.

    Args:
        numbers: of each row.
        names: what the rows are called in the result; None: by their places.
    """
    order = row_numbers(len(numbers))
    order[:] = np.argsort(numbers, kind="stable")
    return order if names is None else names[order]
