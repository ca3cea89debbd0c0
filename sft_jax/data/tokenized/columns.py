"""Columns of text for millions of rows, in a few bytes a row: what names rows, slices and reasons.

Serves tokenized rows and example_store.py, in memory or mapped from a file.
"""

import dataclasses
import operator
from collections.abc import Iterable, Sequence
from typing import SupportsIndex

import numpy as np
from jaxtyping import Int, Int32, Int64, UInt8


def encode_text(text: str) -> bytes:
    """UTF-8; JSON can spell half a character (a lone surrogate), which comes through too."""
    return text.encode("utf-8", "surrogatepass")


class TextColumn(Sequence[str]):
    """Strings, one after the other as UTF-8, decoded when they are looked at."""

    def __init__(self, data: UInt8[np.ndarray, "bytes"], ends: Int64[np.ndarray, "count"]):
        """Wraps arrays: string i is the bytes from the end of the one before to `ends[i]`."""
        self.data, self.ends = data, ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> "TextColumn":
        """The column of some strings."""
        encoded = [encode_text(text) for text in texts]
        ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        number %= len(self)
        start = int(self.ends[number - 1]) if number else 0
        return self.data[start : int(self.ends[number])].tobytes().decode("utf-8", "surrogatepass")


@dataclasses.dataclass(frozen=True)
class Labels:
    """A name for each row, out of few: its slice of the data, its source.

    Attributes:
        codes: the name of row i is `names[codes[i]]`.
        names: the names, in the order in which they first appear.
    """

    codes: Int32[np.ndarray, "rows"]
    names: tuple[str, ...]

    @classmethod
    def of(cls, values: Sequence[str]) -> "Labels":
        """The labels of some rows."""
        numbers: dict[str, int] = {}
        codes = np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int32)
        return cls(codes, tuple(numbers))

    def totals(
        self, sizes: Int[np.ndarray, "rows"] | None = None, chosen: Int[np.ndarray, "chosen"] | None = None
    ) -> Int64[np.ndarray, "names"]:
        """How many rows each name has, or what they have of `sizes` together; of all rows or of chosen ones."""
        rows = slice(None) if chosen is None else chosen
        weights = None if sizes is None else sizes[rows]
        # Exact: sums of whole numbers below 2**53.
        return np.bincount(self.codes[rows], weights=weights, minlength=len(self.names)).astype(np.int64)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, row: SupportsIndex) -> str:
        return self.names[self.codes[row]]
