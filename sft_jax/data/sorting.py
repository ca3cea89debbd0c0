"""Sorting the numbers of millions of rows, in blocks: what is made on the way is small beside the result.

Serves packing, the plan and the checks that compare hashes. Numbers of rows are int32. A block fits into the cache of a
processor, so this is also no slower than one sort of all.
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


def by_hash(hashes: UInt64[np.ndarray, "rows"], but: int | None = None) -> Iterator[Int64[np.ndarray, "part"]]:
    """The rows in the order of their hashes, equal ones in their own order; part by part, equal ones in one part.

    Parts are small where hashes are what they should be: spread evenly. Rows of the hash `but` are left out.
    """
    bits = min(max((len(hashes) // BLOCK_ROWS).bit_length(), 1), 8)
    part_of = np.empty(len(hashes), np.uint8)
    np.right_shift(hashes, np.uint64(64 - bits), out=part_of, casting="unsafe")  # the highest bits: parts are in order
    for part in range(1 << bits):
        chosen = part_of == part
        if but is not None and part == but >> 64 - bits:
            chosen &= hashes != but
        rows = np.flatnonzero(chosen)
        yield rows[np.argsort(hashes[rows], kind="stable")]


def permutation(count: int, *key: int) -> RowNumbers:
    """A shuffled range(count), the same in every NumPy version (raw bit streams are guaranteed, `shuffle` is not)."""
    order, done = row_numbers(count), 0
    for rows in by_hash(_random(key).random_raw(count)):
        order[done : done + len(rows)] = rows
        done += len(rows)
    return order


def begin_of_permutation(count: int, wanted: int, *key: int) -> Int64[np.ndarray, "wanted"]:
    """The first `wanted` of `permutation(count, *key)`, in memory that does not grow with `count`."""
    generator = _random(key)
    hashes, rows = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    for block in blocks(count):
        drawn = generator.random_raw(block.stop - block.start)
        # Of equal hashes the first row comes first, so a later one that equals the last of enough is none of them.
        found = np.flatnonzero(drawn < hashes[-1]) if len(hashes) == wanted else np.arange(len(drawn))
        hashes, rows = np.concatenate([hashes, drawn[found]]), np.concatenate([rows, found + block.start])
        order = np.argsort(hashes, kind="stable")[:wanted]
        hashes, rows = hashes[order], rows[order]
    return rows


def _random(key: tuple[int, ...]) -> np.random.PCG64:
    return np.random.PCG64(np.random.SeedSequence(key))


def counted(numbers: Integer[np.ndarray, "rows"], count: int) -> Int64[np.ndarray, "count"]:
    """How often each number below `count` occurs."""
    found = np.zeros(count, np.int64)
    for block in blocks(len(numbers), max(BLOCK_ROWS, count)):
        found += np.bincount(numbers[block], minlength=count)
    return found


def by_number(
    numbers: Integer[np.ndarray, "rows"], counts: Int64[np.ndarray, "count"], names: RowNumbers | None = None
) -> RowNumbers:
    """The rows in the order of a small number each has, those of one number in their own order (a counting sort).

    Args:
        numbers: of each row.
        counts: how many rows have each number.
        names: what the rows are called in the result; None: by their places.
    """
    free = np.cumsum(counts) - counts  # where the next row of each number goes
    order = row_numbers(len(numbers))
    for block in blocks(len(numbers)):
        here = np.argsort(numbers[block], kind="stable")
        ordered = numbers[block][here]
        begins = np.flatnonzero(np.diff(ordered, prepend=-1))
        alike = np.diff(begins, append=len(ordered))
        different = ordered[begins]
        places = np.repeat(free[different] - begins, alike) + np.arange(len(ordered))
        order[places] = here + block.start if names is None else names[block][here]
        free[different] += alike
    return order
