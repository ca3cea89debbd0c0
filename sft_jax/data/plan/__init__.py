"""The pack plan: the order of the whole run as one endless stream of bins.

It is a pure function of the examples' sizes and sources, the mixture and the seed.

The bins of epoch 0 are followed by those of epoch 1, and so on; global batch `step` is bins
[step * B, (step + 1) * B) of the stream, so the last batch of an epoch continues into the next. Every process computes
the same plan and takes its own sequences; the position of a run is one integer, whatever the number of processes and
sources.
"""

import math

import numpy as np

from sft_jax.data.packing import target_slots
from sft_jax.data.packing.bins import Bin, Bins, Bounds
from sft_jax.data.plan.mixture import Mixture
from sft_jax.data.plan.order import Packed, make_blocks
from sft_jax.data.plan.stream import BinStream
from sft_jax.data.tokenized import TokenizedExamples

COUNTED = ("examples", "tokens", "supervised_tokens")


class PackPlan:
    """Which examples are trained on at which step, for all steps.

    Safe to use from several threads (the loader's workers read ahead).
    """

    def __init__(
        self,
        examples: TokenizedExamples,
        *,
        sequence_length: int,
        sequence_targets: int,
        sequences_per_batch: int,
        seed: int,
        packing: str = "best_fit",
        max_examples_per_sequence: int = 0,
        mixture: Mixture | None = None,
    ):
        """Plans the run; epochs are packed when they are first needed.

        Args:
            examples: the training examples.
            sequence_length: tokens S in a sequence.
            sequence_targets: target slots P in a sequence, from `supervised_capacity` or `mixture_capacity`.
            sequences_per_batch: sequences B of the global batch.
            seed: of the order; the same seed gives the same order everywhere.
            packing: a name in PACKINGS (sft_jax.data.packing).
            max_examples_per_sequence: most examples in a sequence; 0 for any number.
            mixture: how much of each source is trained on; None for every example once an epoch.

        Raises:
            ValueError: no examples (of a source), a size below 1, an unknown packing, or an example that exceeds a
                bound.
        """
        sizes = {
            "sequence_length": sequence_length,
            "sequence_targets": sequence_targets,
            "sequences_per_batch": sequences_per_batch,
        }
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if not len(examples):
            raise ValueError("There are no examples to plan.")
        self.sequence_length, self.sequence_targets, self.sequences_per_batch = (
            sequence_length,
            sequence_targets,
            sequences_per_batch,
        )
        self.ids, self.has_epochs = examples.ids, mixture is None or not mixture.weighted
        self.sources = examples.sources.names if len(examples.sources.names) > 1 else ()
        self._examples_of_source = examples.sources.totals()
        self._codes = examples.sources.codes
        self._packed = Packed(
            examples.lengths,
            examples.supervised,
            Bounds(sequence_length, sequence_targets, max_examples_per_sequence),
            seed,
            packing,
        )
        self._stream = BinStream(
            make_blocks(self._packed, examples.sources, mixture, sequences_per_batch), self._measure
        )
        self._stream.block(0)

    def _measure(self, bins: Bins) -> np.ndarray:
        """For each bin the counts COUNTED, then the tokens of each source and its examples: [bins, 3 + 2 * sources]."""
        lengths = self._packed.lengths
        measured = [bins.sizes, bins.sums(lengths), bins.sums(self._packed.supervised)]
        if self.sources:
            number = np.repeat(np.arange(len(bins)), bins.sizes)
            place = number * len(self.sources) + self._codes[bins.members]
            shape = (len(bins), len(self.sources))
            for sizes in (lengths[bins.members], None):
                each = np.bincount(place, weights=sizes, minlength=shape[0] * shape[1])
                measured.extend(each.astype(np.int64).reshape(shape).T)
        return np.stack(measured, axis=1)

    def bins(self, start: int, count: int) -> list[Bin]:
        """Bins [start, start + count) of the stream, each an array of example indices."""
        return self._stream.bins(start, count)

    def batch_bins(self, step: int) -> list[Bin]:
        """The bins of global batch `step`."""
        return self.bins(step * self.sequences_per_batch, self.sequences_per_batch)

    def example_ids(self, step: int) -> list[str]:
        """Names of all examples in global batch `step`."""
        return [self.ids[member] for members in self.batch_bins(step) for member in members]

    def counts(self, step: int) -> dict[str, int]:
        """Examples, tokens and supervised tokens of global batch `step`."""
        before, after = self.cumulative_counts(step), self.cumulative_counts(step + 1)
        return {name: after[name] - before[name] for name in COUNTED}

    def cumulative_counts(self, step: int) -> dict[str, int]:
        """Examples, tokens and supervised tokens of all global batches before `step`.

        These counters survive a resume: they are computed from the plan.
        """
        return dict(zip(COUNTED, self._before(step)[: len(COUNTED)].tolist(), strict=True))

    def tokens_by_source(self, step: int) -> dict[str, int]:
        """Tokens of each source in all global batches before `step`; empty where there are not several sources."""
        return dict(zip(self.sources, self._by_source(step)[0].tolist(), strict=True))

    def epochs_by_source(self, step: int) -> dict[str, float]:
        """How often the examples of each source were seen before `step`, on average; empty as in `tokens_by_source`."""
        return dict(zip(self.sources, (self._by_source(step)[1] / self._examples_of_source).tolist(), strict=True))

    def _by_source(self, step: int) -> np.ndarray:
        if not self.sources:
            return np.zeros((2, 0), np.int64)
        return self._before(step)[len(COUNTED) :].reshape(2, len(self.sources))

    def _before(self, step: int) -> np.ndarray:
        return self._stream.counts_before(step * self.sequences_per_batch)

    def epochs_at(self, step: int) -> float:
        """Epochs done before `step`, with the fraction of the current one's bins.

        Raises:
            ValueError: the plan has no epochs.
        """
        self._check_epochs()
        epoch, inside = self._stream.locate(step * self.sequences_per_batch)
        return epoch + inside / len(self._stream.block(epoch))

    @property
    def first_block(self) -> Bins:
        """The bins of epoch 0; the first bins, where there are no epochs."""
        return self._stream.block(0)

    @property
    def steps_per_epoch(self) -> float:
        """Global batches of the first epoch (others may differ by a bin or so)."""
        self._check_epochs()
        return len(self._stream.block(0)) / self.sequences_per_batch

    def _check_epochs(self) -> None:
        if not self.has_epochs:
            raise ValueError(
                "A mixture whose sources have weights has no epochs; give steps, examples or tokens, or give every "
                "source `epochs` in place of `weight`."
            )

    def steps_for(self, unit: str, amount: int | float) -> int:
        """The smallest number of steps that reaches `amount` of `unit`: steps, examples, tokens or epochs.

        Raises:
            ValueError: another unit, a negative amount, or epochs where the plan has none.
        """
        if not (math.isfinite(amount) and amount >= 0):
            raise ValueError(f"A duration must be a finite number that is not negative, got {amount} {unit}.")
        if unit == "steps":
            return math.ceil(amount)
        if unit == "epochs":
            self._check_epochs()
            epoch = math.floor(amount)
            inside = math.ceil((amount - epoch) * len(self._stream.block(epoch))) if amount > epoch else 0
            return -(-(self._stream.start(epoch) + inside) // self.sequences_per_batch)
        if unit not in ("examples", "tokens"):
            raise ValueError(f"Unknown unit of duration {unit!r}: expected steps, examples, tokens or epochs.")
        return -(-self._stream.position_of(COUNTED.index(unit), amount) // self.sequences_per_batch)


def mixture_capacity(
    examples: TokenizedExamples,
    mixture: Mixture,
    sequence_length: int,
    quantile: int | float,
    packing: str = "best_fit",
    max_examples_per_sequence: int = 0,
) -> int:
    """The number P of target slots in a sequence, for a mixture; see `supervised_capacity`.

    P is one number for the whole run. Where weights change by step it is the largest that the shares at a knot of their
    schedules ask for: what is drawn first says nothing of a source that comes later.

    Raises:
        ValueError: as in `supervised_capacity`, or a source without examples.
    """
    by_tokens = Packed(
        examples.lengths,
        examples.supervised,
        Bounds(sequence_length, sequence_length, max_examples_per_sequence),
        0,
        packing,
    )
    largest = int(examples.supervised.max())

    def slots(mixture: Mixture) -> int:
        bins = make_blocks(by_tokens, examples.sources, mixture, sequences_per_batch=1)(0)
        return target_slots(bins.sums(examples.supervised), largest, sequence_length, quantile)

    return max(slots(mixture.fixed_at(step)) for step in mixture.knots)
