"""Bins: which examples share a sequence, as two flat arrays however many bins there are; and the bounds of a bin."""

import dataclasses
import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from jaxtyping import Int, Int32, Int64

from sft_jax.data.sorting import BLOCK, Indices, blocks, by_number, empty_indices

Bin = Int[np.ndarray, "_"]  # indices of the examples in one sequence
Sizes = Int[np.ndarray, "examples"]


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What closes a bin, whichever comes first.

    Attributes:
        tokens: most tokens S in a bin.
        targets: most supervised tokens P in a bin.
        segments: most examples in a bin; 0 for any number.
    """

    tokens: int
    targets: int
    segments: int = 0

    def __post_init__(self):
        if self.tokens < 1 or self.targets < 1 or self.segments < 0:
            raise ValueError(
                f"A bin has at least one token and one target, and no negative cap on examples; got {self}."
            )

    def check_examples(self, lengths: Sizes, supervised: Sizes) -> None:
        """Checks that each example fits into a bin of its own.

        Raises:
            ValueError: one does not.
        """
        for sizes, bound, what in ((lengths, self.tokens, "tokens"), (supervised, self.targets, "supervised tokens")):
            if len(sizes) and sizes.max() > bound:
                example = int(sizes.argmax())
                raise ValueError(
                    f"Example {example} has {sizes[example]} {what}, a sequence holds {bound}. Examples are never cut: "
                    "drop it before packing or raise the bound."
                )


@dataclasses.dataclass(frozen=True)
class Bins(Sequence[Bin]):
    """A list of bins; an index gives the examples of one bin, a slice gives several bins.

    Attributes:
        members: indices of the examples of all bins, one bin after the other.
        offsets: bin i is `members[offsets[i]:offsets[i + 1]]`.
    """

    members: Int32[np.ndarray, "total"]
    offsets: Int64[np.ndarray, "bins_and_one"]

    @classmethod
    def of_sizes(cls, members: np.ndarray, sizes: np.ndarray) -> "Bins":
        """Bins of the given numbers of examples, taken from `members` one after the other."""
        offsets = np.zeros(len(sizes) + 1, np.int64)
        np.cumsum(sizes, out=offsets[1:])
        return cls(np.asarray(members, np.int32), offsets)

    @classmethod
    def by_number(cls, members: Indices, numbers: np.ndarray, count: int) -> "Bins":
        """Bins from the number of the bin of each member; within a bin the members keep their order."""
        return cls.of_sizes(by_number(numbers, members), np.bincount(numbers, minlength=count))

    @classmethod
    def concatenated(cls, parts: Sequence["Bins"]) -> "Bins":
        """All bins of the parts, in order."""
        empty = [np.zeros(0, np.int32)]
        members = np.concatenate([part.members for part in parts] or empty)
        return cls.of_sizes(members, np.concatenate([part.sizes for part in parts] or empty))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> Bin: ...

    @overload
    def __getitem__(self, index: slice) -> "Bins": ...

    def __getitem__(self, index):
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise ValueError(f"Bins are sliced with step 1, got {step}; `take` gives any of them.")
            offsets = self.offsets[start : max(stop, start) + 1]
            return Bins(self.members[offsets[0] : offsets[-1]], offsets - offsets[0])
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"bin {number} of {len(self)}")
        number %= len(self)
        return self.members[self.offsets[number] : self.offsets[number + 1]]

    def __iter__(self) -> Iterator[Bin]:
        for start, end in itertools.pairwise(self.offsets.tolist()):
            yield self.members[start:end]

    @property
    def sizes(self) -> Int64[np.ndarray, "bins"]:
        """Examples in each bin."""
        return np.diff(self.offsets)

    def blocks(self, multiple: int = 1) -> Iterator[slice]:
        """Slices that together are all bins, each of about `BLOCK` examples; all but the last of a multiple of bins."""
        bins = BLOCK * len(self) // max(len(self.members), 1)
        return blocks(len(self), max(bins // multiple, 1) * multiple)

    def take(self, numbers: np.ndarray) -> "Bins":
        """The bins of these numbers, in that order."""
        sizes = self.sizes[numbers]
        taken = Bins.of_sizes(empty_indices(int(sizes.sum())), sizes)
        for block in taken.blocks():
            begin, end = taken.offsets[[block.start, block.stop]]
            moved = self.offsets[numbers[block]] - taken.offsets[block]  # how far each bin moves
            taken.members[begin:end] = self.members[np.arange(begin, end) + np.repeat(moved, sizes[block])]
        return taken

    def renamed(self, names: np.ndarray) -> "Bins":
        """The same bins, with `names[i]` in place of index i."""
        return Bins(names[self.members], self.offsets)

    def sums(self, sizes: np.ndarray) -> np.ndarray:
        """The sum of `sizes` over the examples of each bin; sizes [examples, n] give sums [bins, n]."""
        found = np.empty((len(self), *sizes.shape[1:]), np.int64)
        for block in self.blocks():
            offsets = self.offsets[block.start : block.stop + 1]
            running = np.zeros((offsets[-1] - offsets[0] + 1, *sizes.shape[1:]), np.int64)
            np.cumsum(sizes[self.members[offsets[0] : offsets[-1]]], axis=0, out=running[1:])
            found[block] = np.diff(running[offsets - offsets[0]], axis=0)
        return found
