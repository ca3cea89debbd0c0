"""Orders of millions of examples or bins, as int32 indices: shuffled ones, and sorted by a small number each has.

Used by packing and the pack plan.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int32, Int64, Integer, UInt64

BLOCK = 1 << 16  # indices that are handled together

Indices = Int32[np.ndarray, "_"]


def empty_indices(count: int) -> Indices:
    """An array for the indices of `count` examples, not yet filled.

    Raises:
        ValueError: an index would not fit into int32.
    """
    most = np.iinfo(np.int32).max
    if count > most:
        raise ValueError(
            f"{count:,} examples cannot be ordered together: at most {most:,}. Train on a part of the data."
        )
    return np.empty(count, np.int32)


def blocks(count: int, size: int = 0) -> Iterator[slice]:
    """Slices that together are range(count), each of `size`; 0 for `BLOCK`."""
    size = size or BLOCK
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def permutation(count: int, *key: int) -> Indices:
    """A shuffled range(count), the same in every NumPy version (raw bit streams are guaranteed, `shuffle` is not)."""
    order = empty_indices(count)
    order[:] = np.argsort(_hashes(count, key), kind="stable")
    return order


def begin_of_permutation(count: int, wanted: int, *key: int) -> Int64[np.ndarray, "wanted"]:
    """The first `wanted` of `permutation(count, *key)`, without sorting the rest."""
    hashes = _hashes(count, key)
    if wanted >= count:
        return np.argsort(hashes, kind="stable")
    smallest = np.flatnonzero(hashes <= np.partition(hashes, wanted)[wanted])
    return smallest[np.argsort(hashes[smallest], kind="stable")][:wanted]


def _hashes(count: int, key: tuple[int, ...]) -> UInt64[np.ndarray, "count"]:
    return np.random.PCG64(np.random.SeedSequence(key)).random_raw(count)


def by_number(numbers: Integer[np.ndarray, "examples"], names: Indices | None = None) -> Indices:
    """Examples sorted by a number each has; those of equal numbers keep their order.

    Args:
        numbers: of each example.
        names: the index of each example in the result; None: its place in `numbers`.
    """
    order = empty_indices(len(numbers))
    order[:] = np.argsort(numbers, kind="stable")
    return order if names is None else names[order]
