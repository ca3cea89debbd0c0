"""The pack plan: the order of the whole run as one endless stream of bins, known without reading a token.

The bins of epoch 0 are followed by those of epoch 1, and so on; global batch `step` is bins
[step * R, (step + 1) * R) of the stream, so the last batch of an epoch rolls over into the next. It is computed alike
on every process, which then takes its slice; the position of a run is one integer, whatever the number of processes.
"""

import bisect
import collections
import math
import threading

import numpy as np

from sft_jax.data.bins import Bin, Bins
from sft_jax.data.packing import pack_epoch
from sft_jax.data.tokenized import TokenizedRows

COUNTED = ("examples", "tokens", "supervised_tokens")
_EPOCHS_KEPT = 3  # epochs whose bins stay in memory: the current one, its neighbours


class _Epoch:
    """Bins of one epoch and their running counts: [bins + 1, 3] in the order of COUNTED."""

    def __init__(self, bins: Bins, lengths: np.ndarray, supervised: np.ndarray):
        self.bins = bins
        self.running = np.zeros((len(bins) + 1, len(COUNTED)), np.int64)
        np.cumsum(
            np.stack([bins.sizes, bins.sums(lengths), bins.sums(supervised)], axis=1), axis=0, out=self.running[1:]
        )


class PackPlan:
    """Which rows are trained on at which step, for all steps.

    Safe to use from several threads (the loader's workers read ahead).
    """

    def __init__(
        self,
        rows: TokenizedRows,
        *,
        row_tokens: int,
        row_targets: int,
        rows_per_batch: int,
        seed: int,
        packing: str = "best_fit",
        max_segments: int = 0,
    ):
        """Plans the run; epochs are packed when they are first needed.

        Args:
            rows: the training rows.
            row_tokens: tokens S in a row of the batch.
            row_targets: target slots P in a row of the batch, from `supervised_capacity`.
            rows_per_batch: rows R of the global batch.
            seed: of the order; the same seed gives the same order everywhere.
            packing: a name in PACKINGS (packing.py).
            max_segments: most rows of data in a row of the batch; 0 for any number.

        Raises:
            ValueError: no rows, a size below 1, an unknown packing, or a row that exceeds a bound.
        """
        sizes = {"row_tokens": row_tokens, "row_targets": row_targets, "rows_per_batch": rows_per_batch}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if not len(rows):
            raise ValueError("There are no rows to plan.")
        self.row_tokens, self.row_targets, self.rows_per_batch = row_tokens, row_targets, rows_per_batch
        self.seed, self.packing, self.max_segments, self.ids = seed, packing, max_segments, rows.ids
        self._lengths, self._supervised = rows.lengths, rows.supervised
        self._totals = np.array([len(rows), self._lengths.sum(), self._supervised.sum()], np.int64)
        self._epochs: collections.OrderedDict[int, _Epoch] = collections.OrderedDict()
        self._starts = [0]  # position of the first bin of each epoch seen so far; only grows
        self._lock = threading.Lock()
        self._packing_lock = threading.Lock()  # not the one above: packing an epoch ahead must not stop the counters
        self._epoch(0)

    def bins(self, start: int, count: int) -> list[Bin]:
        """Bins [start, start + count) of the stream, each an array of row indices."""
        found: list[Bin] = []
        while len(found) < count:
            epoch, inside = self._locate(start + len(found))
            found.extend(self._epoch(epoch).bins[inside : inside + count - len(found)])
        return found

    def batch_bins(self, step: int) -> list[Bin]:
        """The bins of global batch `step`."""
        return self.bins(step * self.rows_per_batch, self.rows_per_batch)

    def row_ids(self, step: int) -> list[str]:
        """Names of all rows in global batch `step`."""
        return [self.ids[row] for rows in self.batch_bins(step) for row in rows]

    def counts(self, step: int) -> dict[str, int]:
        """Examples, tokens and supervised tokens of global batch `step`."""
        before, after = self.cumulative_counts(step), self.cumulative_counts(step + 1)
        return {name: after[name] - before[name] for name in COUNTED}

    def cumulative_counts(self, step: int) -> dict[str, int]:
        """Examples, tokens and supervised tokens of all global batches before `step`.

        Counters that survive a resume: they follow from the plan, nothing is counted.
        """
        epoch, inside = self._locate(step * self.rows_per_batch)
        counts = epoch * self._totals + self._epoch(epoch).running[inside]
        return dict(zip(COUNTED, counts.tolist(), strict=True))

    def epochs_at(self, step: int) -> float:
        """Epochs done before `step`, with the fraction of the current one's bins."""
        epoch, inside = self._locate(step * self.rows_per_batch)
        return epoch + inside / len(self._epoch(epoch).bins)

    @property
    def first_epoch(self) -> Bins:
        """The bins of epoch 0."""
        return self._epoch(0).bins

    @property
    def steps_per_epoch(self) -> float:
        """Global batches of the first epoch (others may differ by a bin or so)."""
        return len(self._epoch(0).bins) / self.rows_per_batch

    def steps_for(self, unit: str, amount: int | float) -> int:
        """The smallest number of steps that reaches `amount` of `unit`: steps, examples, tokens or epochs.

        Raises:
            ValueError: another unit, or a negative amount.
        """
        if not (math.isfinite(amount) and amount >= 0):
            raise ValueError(f"A duration must be a finite number that is not negative, got {amount} {unit}.")
        if unit == "steps":
            return math.ceil(amount)
        if unit == "epochs":
            epoch = math.floor(amount)
            bins = self._start(epoch) + math.ceil((amount - epoch) * len(self._epoch(epoch).bins))
            return -(-bins // self.rows_per_batch)
        if unit not in ("examples", "tokens"):
            raise ValueError(f"Unknown unit of duration {unit!r}: expected steps, examples, tokens or epochs.")
        epochs = math.ceil(amount / int(self._totals[COUNTED.index(unit)]))
        enough = range(-(-self._start(epochs) // self.rows_per_batch) + 1)
        return bisect.bisect_left(enough, amount, key=lambda step: self.cumulative_counts(step)[unit])

    def _start(self, epoch: int) -> int:
        while len(self._starts) <= epoch:
            self._epoch(len(self._starts) - 1)
        return self._starts[epoch]

    def _locate(self, position: int) -> tuple[int, int]:
        """The epoch of a bin of the stream and its place in it."""
        if position < 0:
            raise ValueError(f"A position in the plan cannot be negative, got {position}.")
        while self._starts[-1] <= position:
            self._epoch(len(self._starts) - 1)
        epoch = bisect.bisect_right(self._starts, position) - 1
        return epoch, position - self._starts[epoch]

    def _epoch(self, epoch: int) -> _Epoch:
        found = self._kept(epoch)
        if found is not None:
            return found
        with self._packing_lock:
            return self._kept(epoch) or self._pack(epoch)

    def _kept(self, epoch: int) -> _Epoch | None:
        with self._lock:
            if epoch in self._epochs:
                self._epochs.move_to_end(epoch)
            return self._epochs.get(epoch)

    def _pack(self, epoch: int) -> _Epoch:
        bins = pack_epoch(
            self._lengths,
            self._supervised,
            row_tokens=self.row_tokens,
            row_targets=self.row_targets,
            seed=self.seed,
            epoch=epoch,
            packing=self.packing,
            max_segments=self.max_segments,
        )
        packed = _Epoch(bins, self._lengths, self._supervised)
        with self._lock:
            self._epochs[epoch] = packed
            if len(self._starts) == epoch + 1:
                self._starts.append(self._starts[epoch] + len(bins))
            while len(self._epochs) > _EPOCHS_KEPT:
                self._epochs.popitem(last=False)
        return packed
