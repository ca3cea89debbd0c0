"""The order of the bins: blocks of bins, each a pure function of sizes, seed and the number of the block.

One data set: a block is an epoch. A mixture: a block is an epoch of the mixture where sources have epochs, and a
stretch of draws where they have weights. `BinStream` (stream.py) joins the blocks; `PackPlan` counts.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Int32

from sft_jax.data.packing import KEEP_ORDER, get_packing, pack_epoch
from sft_jax.data.packing.bins import Bins, Bounds, Sizes
from sft_jax.data.plan.mixture import Mixture, Source, interleave
from sft_jax.data.plan.stream import BinStream
from sft_jax.data.sorting import empty_indices, permutation
from sft_jax.data.tokenized.columns import Labels

ExampleNumbers = Int32[np.ndarray, "_"]
MakeBlock = Callable[[int], Bins]

_BLOCK_BINS = 256  # bins drawn at a time, where sources have weights
_CHANGING_BLOCK_BINS = (
    64  # where weights change by step and examples are packed after mixing: they change within a block
)
_SHUFFLED_BINS, _PASS, _DRAWS = 1, 2, 3  # streams of random numbers; 0 is that of `pack_epoch`


@dataclasses.dataclass(frozen=True)
class Packed:
    """How examples become bins.

    Attributes:
        lengths: tokens of each example.
        supervised: supervised tokens of each example.
        bounds: what closes a bin.
        seed: of the order.
        packing: a name in PACKINGS (sft_jax.data.packing).
    """

    lengths: Sizes
    supervised: Sizes
    bounds: Bounds
    seed: int
    packing: str

    @property
    def keeps_order(self) -> bool:
        """True where examples stay in the order of their files."""
        return self.packing in KEEP_ORDER

    def examples_a_bin(self, mean_tokens: float) -> float:
        """How many examples of a mean length about fill a bin."""
        if self.packing == "none":
            return 1.0
        return min(max(self.bounds.tokens / mean_tokens, 1.0), self.bounds.segments or math.inf)

    def pack(self, examples: ExampleNumbers) -> Bins:
        """Bins of these examples, which may repeat."""
        pack = get_packing(self.packing)
        return pack(self.lengths[examples], self.supervised[examples], self.bounds).renamed(examples)

    def shuffled(self, bins: Bins, *key: int) -> Bins:
        """The bins of the block with this key in the order they are trained on."""
        return bins if self.keeps_order else bins.take(permutation(len(bins), self.seed, *key, _SHUFFLED_BINS))


def make_blocks(packed: Packed, sources: Labels, mixture: Mixture | None, sequences_per_batch: int) -> MakeBlock:
    """The blocks of a data set or a mixture.

    Args:
        packed: the examples and how they become bins.
        sources: the source of each example.
        mixture: how much of each source is trained on; None for every example once an epoch.
        sequences_per_batch: bins of a step.

    Raises:
        ValueError: a source of the mixture has no examples, or an epoch of it has none.
    """
    if mixture is None:
        return epochs_of(packed)
    found = []
    for number, source in enumerate(mixture.sources):
        examples = _examples_of(sources, source.name)
        if not len(examples):
            raise ValueError(
                f"The source {source.name!r} has no examples left to train on; remove it or look at its rows."
            )
        found.append(SourceExamples(source, examples, number, packed))
    if mixture.weighted:
        return WeightedDraws(mixture, found, packed, sequences_per_batch)
    counts = {source: len(examples) for source, examples in zip(mixture.sources, found, strict=True)}
    if not any(source.examples_before(1, count) for source, count in counts.items()):
        epochs = ", ".join(
            f"{source.name}.epochs={source.epochs:g} of {count} examples" for source, count in counts.items()
        )
        raise ValueError(f"An epoch of the mixture has no example ({epochs}): give a source more epochs.")
    return mixed_epochs(mixture, found, packed)


def _examples_of(sources: Labels, name: str) -> ExampleNumbers:
    code = sources.names.index(name) if name in sources.names else -1
    return np.flatnonzero(sources.codes == code).astype(np.int32)


def epochs_of(packed: Packed) -> MakeBlock:
    """Blocks of one data set: its epochs."""
    return lambda epoch: pack_epoch(
        packed.lengths,
        packed.supervised,
        sequence_length=packed.bounds.tokens,
        sequence_targets=packed.bounds.targets,
        seed=packed.seed,
        epoch=epoch,
        packing=packed.packing,
        max_examples_per_sequence=packed.bounds.segments,
    )


class SourceExamples:
    """The examples of one source in the order they are drawn, without end."""

    def __init__(self, source: Source, examples: ExampleNumbers, number: int, packed: Packed):
        """Source `number` of the mixture, with its examples in the order of their files."""
        self.number = number
        self._source, self._examples, self._key, self._keeps_order = (
            source,
            examples,
            (packed.seed, number),
            packed.keeps_order,
        )
        # Blocks are much smaller than passes: without this each of them would shuffle all examples of the source.
        self._pass = functools.lru_cache(maxsize=1)(self._shuffled)

    def __len__(self) -> int:
        return len(self._examples)

    def drawn(self, start: int, count: int) -> ExampleNumbers:
        """Draws [start, start + count): pass after pass, each with every example once; or independent draws."""
        if self._source.replacement:
            generator = np.random.PCG64(np.random.SeedSequence((*self._key, _DRAWS))).advance(start)
            numbers = np.asarray(generator.random_raw(count), np.uint64) % np.uint64(len(self._examples))
            return self._examples[numbers.astype(np.int64)]
        size = len(self._examples)
        parts = [np.zeros(0, np.int32)]
        for number in range(start // size, -(-(start + count) // size)):
            begin = number * size
            parts.append(self._pass(number)[max(start - begin, 0) : start + count - begin])
        return np.concatenate(parts)

    def _shuffled(self, number: int) -> ExampleNumbers:
        if self._keeps_order:
            return self._examples
        return self._examples[permutation(len(self._examples), *self._key, number, _PASS)]


def mixed_epochs(mixture: Mixture, sources: list[SourceExamples], packed: Packed) -> MakeBlock:
    """Blocks of a mixture whose sources have epochs: epochs of the mixture."""

    def make(epoch: int) -> Bins:
        drawn = []
        for source, examples in zip(mixture.sources, sources, strict=True):
            start, end = (source.examples_before(number, len(examples)) for number in (epoch, epoch + 1))
            drawn.append(examples.drawn(start, end - start))
        if mixture.packing == "before":
            parts = [packed.pack(examples) for examples in drawn]
            bins = Bins.concatenated(parts)
            in_order = _evenly([len(part) for part in parts])
            return bins.take(in_order) if packed.keeps_order else packed.shuffled(bins, epoch)
        examples = np.concatenate(drawn)
        order = (
            _evenly([len(some) for some in drawn])
            if packed.keeps_order
            else permutation(len(examples), packed.seed, epoch, 0)
        )
        del drawn
        examples = examples[order]
        del order
        return packed.shuffled(packed.pack(examples), epoch)

    return make


def _evenly(counts: list[int]) -> ExampleNumbers:
    """Indices of things of several kinds, so many of each, spread evenly; each kind keeps its order."""
    ideal = np.concatenate([(np.arange(count) + 0.5) / max(count, 1) for count in counts])
    return np.argsort(ideal, kind="stable").astype(np.int32)


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """Where a block of a weighted mixture starts.

    Attributes:
        bins: all bins before it.
        taken: bins (packing before mixing) or examples (after) taken from each source.
        owed: see `interleave`.
    """

    bins: int
    taken: np.ndarray
    owed: np.ndarray


class WeightedDraws:
    """Blocks of a mixture whose sources have weights."""

    def __init__(self, mixture: Mixture, sources: list[SourceExamples], packed: Packed, sequences_per_batch: int):
        """Weights that change do so by step, of `sequences_per_batch` bins."""
        self._mixture, self._sources, self._packed, self._sequences_per_batch = (
            mixture,
            sources,
            packed,
            sequences_per_batch,
        )
        count = len(sources)
        self._starts = [
            _Drawn(0, np.zeros(count, np.int64), np.zeros(count))
        ]  # of each block made so far, and the next
        self._streams = [
            BinStream(lambda number, source=source: self._pack_pass(source, number), _uncounted) for source in sources
        ]
        self._mean_tokens = np.array([packed.lengths[source.drawn(0, len(source))].mean() for source in sources])

    def __call__(self, block: int) -> Bins:
        """The bins of a block; of a new one only when all before it were made."""
        start = self._starts[block]
        make = self._of_bins if self._mixture.packing == "before" else self._of_examples
        bins, taken, owed = make(start, block)
        if block + 1 == len(self._starts):
            self._starts.append(_Drawn(start.bins + len(bins), start.taken + taken, owed))
        return bins

    def _of_bins(self, start: _Drawn, block: int) -> tuple[Bins, np.ndarray, np.ndarray]:
        """Bins of one source each: bins are drawn."""
        del block
        steps = (start.bins + np.arange(_BLOCK_BINS)) // self._sequences_per_batch
        drawn, owed = interleave(self._mixture.shares(steps), start.owed)
        taken = np.bincount(drawn, minlength=len(self._sources))
        members = [
            member
            for stream, first, count in zip(self._streams, start.taken, taken, strict=True)
            for member in stream.bins(int(first), int(count))
        ]
        bins = Bins.of_sizes(np.concatenate(members), np.array([len(member) for member in members]))
        place = np.empty(len(drawn), np.int64)
        place[np.argsort(drawn, kind="stable")] = np.arange(len(drawn))
        return bins.take(place), taken, owed

    def _of_examples(self, start: _Drawn, block: int) -> tuple[Bins, np.ndarray, np.ndarray]:
        """Bins of examples of all sources: examples are drawn."""
        here = start.bins // self._sequences_per_batch
        mean_tokens = float(self._mixture.shares(np.array([here]))[0] @ self._mean_tokens)
        wanted = _CHANGING_BLOCK_BINS if self._mixture.changes else _BLOCK_BINS
        examples_a_bin = self._packed.examples_a_bin(mean_tokens)
        count = max(1, round(wanted * examples_a_bin))
        # Which step an example falls into is known when it is packed; before, from how many of them fill a bin.
        steps = here + np.arange(count) / examples_a_bin / self._sequences_per_batch
        drawn, owed = interleave(self._mixture.shares(steps), start.owed)
        taken = np.bincount(drawn, minlength=len(self._sources))
        examples = empty_indices(count)
        for number, (source, first) in enumerate(zip(self._sources, start.taken, strict=True)):
            examples[drawn == number] = source.drawn(int(first), int(taken[number]))
        return self._packed.shuffled(self._packed.pack(examples), block), taken, owed

    def _pack_pass(self, source: SourceExamples, number: int) -> Bins:
        bins = self._packed.pack(source.drawn(number * len(source), len(source)))
        return self._packed.shuffled(bins, source.number, number)


def _uncounted(bins: Bins) -> np.ndarray:
    return np.zeros((len(bins), 0), np.int64)
