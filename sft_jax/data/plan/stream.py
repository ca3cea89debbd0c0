"""An endless stream of bins, made block by block: which block a position is in, its bin, and the counts before it."""

import bisect
import collections
import dataclasses
import threading
from collections.abc import Callable

import numpy as np
from jaxtyping import Int64

from sft_jax.data.packing.bins import Bin, Bins

Counts = Int64[np.ndarray, "counted"]
_BLOCKS_KEPT = 3  # blocks that stay in memory: the current one and its neighbours
_COUNTED_BINS = 64  # counts are stored once for so many bins


@dataclasses.dataclass(frozen=True)
class _Block:
    """The bins of a block, and what is counted of them.

    Attributes:
        bins: of the block.
        measure: see `BinStream`.
        running: what was counted in the block before bins 0, 64, 128, … and the end: [_, counted].
    """

    bins: Bins
    measure: Callable[[Bins], np.ndarray]
    running: np.ndarray

    @classmethod
    def of(cls, bins: Bins, measure: Callable[[Bins], np.ndarray]) -> "_Block":
        """Counts, some bins at a time."""
        cuts = range(0, len(bins), _COUNTED_BINS)
        every = bins.blocks(_COUNTED_BINS)
        sums = [np.add.reduceat(measure(bins[some]), range(0, some.stop - some.start, _COUNTED_BINS)) for some in every]
        running = np.zeros((len(cuts) + 1, sums[0].shape[1]), np.int64)
        np.cumsum(np.concatenate(sums), axis=0, out=running[1:])
        return cls(bins, measure, running)

    def before(self, number: int) -> Counts:
        """What was counted in the block before one of its bins, or before its end."""
        known = number // _COUNTED_BINS
        return self.running[known] + self.measure(self.bins[known * _COUNTED_BINS : number]).sum(axis=0)

    def first_after(self, counted: int, amount: float) -> int:
        """The first bin before which at least `amount` of count number `counted` stands in the block, which has it."""
        known = int(self.running[:, counted].searchsorted(amount)) - 1
        if known < 0:
            return 0
        begin = known * _COUNTED_BINS
        some = self.measure(self.bins[begin : begin + _COUNTED_BINS])[:, counted]
        return begin + 1 + int((self.running[known, counted] + np.cumsum(some)).searchsorted(amount))


class BinStream:
    """Block 0, then block 1, and so on; each is made when it is first needed, and again when it was forgotten.

    Safe to use from several threads (the loader's workers read ahead).
    """

    def __init__(self, make: Callable[[int], Bins], measure: Callable[[Bins], np.ndarray]):
        """Nothing is made yet.

        Args:
            make: gives the bins of a block, at least one; asked for a new block only when all before it were made,
                and by one thread at a time.
            measure: what is counted of each bin: [bins, counted], int64.
        """
        self._make, self._measure = make, measure
        self._blocks: collections.OrderedDict[int, _Block] = collections.OrderedDict()
        self._starts = [0]  # position of the first bin of each block made so far, and of the next; only grows
        self._counts: list[np.ndarray | int] = [0]  # what was counted before it
        self._lock = threading.Lock()
        self._making = threading.Lock()  # not the one above: making a block ahead must not stop the counters

    def bins(self, start: int, count: int) -> list[Bin]:
        """Bins [start, start + count) of the stream, each an array of example indices."""
        found: list[Bin] = []
        while len(found) < count:
            block, inside = self.locate(start + len(found))
            found.extend(self.block(block)[inside : inside + count - len(found)])
        return found

    def block(self, index: int) -> Bins:
        """The bins of a block."""
        return self._block(index).bins

    def locate(self, position: int) -> tuple[int, int]:
        """The block of a bin of the stream and the bin's place in it.

        Raises:
            ValueError: the position is negative.
        """
        if position < 0:
            raise ValueError(f"A position in the plan cannot be negative, got {position}.")
        while self._starts[-1] <= position:
            self._block(len(self._starts) - 1)
        index = bisect.bisect_right(self._starts, position) - 1
        return index, position - self._starts[index]

    def start(self, index: int) -> int:
        """Position of the first bin of a block."""
        while len(self._starts) <= index:
            self._block(len(self._starts) - 1)
        return self._starts[index]

    def counts_before(self, position: int) -> Counts:
        """What was counted of all bins before a position."""
        index, inside = self.locate(position)
        return self._counts[index] + self._block(index).before(inside)

    def position_of(self, counted: int, amount: float) -> int:
        """The smallest position before which at least `amount` of count number `counted` stands."""
        index = 0
        while self._total_before(index + 1)[counted] < amount:
            index += 1
        here = amount - (int(self._counts[index][counted]) if index else 0)
        return self._starts[index] + self._block(index).first_after(counted, here)

    def _total_before(self, index: int) -> np.ndarray:
        self.start(index)
        return self._counts[index]

    def _block(self, index: int) -> _Block:
        found = self._kept(index)
        if found is not None:
            return found
        with self._making:
            return self._kept(index) or self._made(index)

    def _kept(self, index: int) -> _Block | None:
        with self._lock:
            if index in self._blocks:
                self._blocks.move_to_end(index)
            return self._blocks.get(index)

    def _made(self, index: int) -> _Block:
        while len(self._starts) <= index:  # a block further on: those before it come first
            self._remember(len(self._starts) - 1)
        return self._remember(index)

    def _remember(self, index: int) -> _Block:
        block = _Block.of(self._make(index), self._measure)
        with self._lock:
            self._blocks[index] = block
            if len(self._starts) == index + 1:
                self._counts.append(self._counts[index] + block.running[-1])
                self._starts.append(self._starts[index] + len(block.bins))
            while len(self._blocks) > _BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        return block
