"""Text columns of millions of entries in a few bytes each: ids of examples, names of slices, reasons of dropped rows.

Used by tokenized examples and example_store.py, in memory or mapped from a file.
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
            raise IndexError(f"text {number} of {len(self)}")
        number %= len(self)
        start = int(self.ends[number - 1]) if number else 0
        return self.data[start : int(self.ends[number])].tobytes().decode("utf-8", "surrogatepass")


@dataclasses.dataclass(frozen=True)
class Labels:
    """A name for each example out of a few: its slice of the data, or its source. Also reasons of dropped rows.

    Attributes:
        codes: the name of example i is `names[codes[i]]`.
        names: the names, in the order in which they first appear.
    """

    codes: Int32[np.ndarray, "examples"]
    names: tuple[str, ...]

    @classmethod
    def of(cls, values: Sequence[str]) -> "Labels":
        """The labels of some examples."""
        numbers: dict[str, int] = {}
        codes = np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int32)
        return cls(codes, tuple(numbers))

    def totals(
        self, sizes: Int[np.ndarray, "examples"] | None = None, chosen: Int[np.ndarray, "chosen"] | None = None
    ) -> Int64[np.ndarray, "names"]:
        """How many examples each name has, or the sum of their `sizes`; of all examples or of the chosen ones."""
        chosen = slice(None) if chosen is None else chosen
        weights = None if sizes is None else sizes[chosen]
        # Exact: sums of whole numbers below 2**53.
        return np.bincount(self.codes[chosen], weights=weights, minlength=len(self.names)).astype(np.int64)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: SupportsIndex) -> str:
        return self.names[self.codes[index]]
