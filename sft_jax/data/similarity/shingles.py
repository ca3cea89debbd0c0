"""Texts as sets of numbers: overlapping pieces of characters or words, hashed, for all texts at once.

Used to find near duplicates (characters) and overlap (words). Two texts are the same here if their letters and digits
are, in order; case, punctuation and white space do not count.
"""

import dataclasses
import unicodedata
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt64

from sft_jax.data.texts import words_of

Hashes = UInt64[np.ndarray, "_"]
Numbers = UInt64[np.ndarray, "total"]
Offsets = Int64[np.ndarray, "texts_and_one"]

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd


@dataclasses.dataclass(frozen=True)
class Shingles:
    """Pieces of texts; text i has `hashes[offsets[i]:offsets[i + 1]]`, repeats included."""

    hashes: Numbers
    offsets: Offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, text: int) -> Hashes:
        """Those of one text (a view)."""
        return self.hashes[self.offsets[text] : self.offsets[text + 1]]

    @property
    def texts(self) -> Int64[np.ndarray, "total"]:
        """The number of the text of each hash."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def where(self, kept: np.ndarray) -> "Shingles":
        """Only the hashes at which `kept` is true; the number of texts stays."""
        running = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept, dtype=np.int64)])
        return Shingles(self.hashes[kept], running[self.offsets])


def words(text: str) -> list[str]:
    """The words of a text in one form: "  I’ve  GOT it!" -> ["i", "ve", "got", "it"]."""
    return words_of(unicodedata.normalize("NFKC", text).casefold())


def character_shingles(texts: Sequence[str], size: int = 5) -> Shingles:
    """Every piece of `size` characters of each text's words with a space between; a shorter text is filled up.

    "To be!" in pieces of 4: "to b", "o be".
    """
    lines = [" ".join(words(text)).ljust(size) for text in texts]
    codes = np.frombuffer("".join(lines).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    return windows(codes, _offsets([len(line) for line in lines]), size)


class Vocabulary:
    """Numbers for words, in the order in which they are first seen."""

    def __init__(self):
        self._numbers: dict[str, int] = {}

    def numbers(self, texts: Sequence[str]) -> tuple[Numbers, Offsets]:
        """The words of each text as numbers, one text after the other."""
        flat, lengths = [], []
        for text in texts:
            found = words(text)
            flat.extend(self._numbers.setdefault(word, len(self._numbers)) for word in found)
            lengths.append(len(found))
        return np.array(flat, np.uint64), _offsets(lengths)


def windows(numbers: Numbers, offsets: Offsets, size: int) -> Shingles:
    """A hash of every `size` successive numbers of each text; a shorter text has none."""
    count = max(len(numbers) - size + 1, 0)
    hashes = np.zeros(count, np.uint64)
    for shift in range(size):
        hashes *= _MULTIPLIER
        hashes += numbers[shift : shift + count] + np.uint64(1)
    lengths = np.maximum(np.diff(offsets) - size + 1, 0)
    starts = _offsets(lengths)
    at = np.arange(starts[-1]) + np.repeat(offsets[:-1] - starts[:-1], lengths)
    return Shingles(_mixed(hashes[at]), starts)


def _mixed(values: Numbers) -> Numbers:
    """Every bit depends on all bits (the finalizer of SplitMix64: Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _offsets(lengths: Sequence[int] | np.ndarray) -> Offsets:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def jaccard(first: Hashes, second: Hashes) -> float:
    """|A and B| / |A or B| of two sets; 1 where both are empty."""
    first, second = np.unique(first), np.unique(second)
    both = len(np.intersect1d(first, second, assume_unique=True))
    either = len(first) + len(second) - both
    return both / either if either else 1.0
