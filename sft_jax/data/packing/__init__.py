"""Packing: which examples share a sequence (a bin), so that little of it is padding.

Pure functions from the sizes of examples to bins; nothing here reads tokens. `PackPlan` (sft_jax.data.plan) joins the
bins of all epochs into one endless stream.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from sft_jax.data.packing.best_fit import best_fit_decreasing
from sft_jax.data.packing.bins import Bins, Bounds, Sizes
from sft_jax.data.packing.first_fit import first_fit_decreasing, in_windows
from sft_jax.data.sorting import begin_of_permutation, permutation
from sft_jax.data.tokenized import TokenizedExamples

Pack = Callable[[Sizes, Sizes, Bounds], Bins]

_TARGETS_MULTIPLE = 8  # the number of target slots is a multiple of this (vector width of the accelerator)
_NEARLY_ALL = 0.9  # from this share of supervised positions on, gathering them does not pay
_SAMPLE = 65_536  # examples from which it is estimated how many target slots a bin needs


def next_fit(lengths: Sizes, supervised: Sizes, bounds: Bounds) -> Bins:
    """Fills one bin after the other with the examples as they come, and never looks back.

    With 4 tokens and lengths [3, 1, 2, 3]: [[0, 1], [2], [3]].

    Raises:
        ValueError: an example alone exceeds a bound.
    """
    bounds.check_examples(lengths, supervised)
    count = len(lengths)
    # Where a bin that begins at each example ends.
    after = np.minimum(np.arange(count) + (bounds.segments or count), count)
    for sizes, bound in ((lengths, bounds.tokens), (supervised, bounds.targets)):
        running = np.zeros(count + 1, np.int64)
        np.cumsum(sizes, out=running[1:])
        after = np.minimum(after, running.searchsorted(running[:-1] + bound, side="right") - 1)
    starts = [0]
    while starts[-1] < count:
        starts.append(int(after[starts[-1]]))
    return Bins(np.arange(count, dtype=np.int32), np.array(starts, np.int64))


def one_example_each(lengths: Sizes, supervised: Sizes, bounds: Bounds) -> Bins:
    """A bin for each example.

    Raises:
        ValueError: an example alone exceeds a bound.
    """
    bounds.check_examples(lengths, supervised)
    return Bins(np.arange(len(lengths), dtype=np.int32), np.arange(len(lengths) + 1))


PACKINGS: dict[str, Pack] = {
    "best_fit": best_fit_decreasing,
    "first_fit": functools.partial(in_windows, first_fit_decreasing),
    "sequential": next_fit,
    "none": one_example_each,
}
KEEP_ORDER = ("sequential",)  # packings under which nothing is shuffled


def get_packing(name: str) -> Pack:
    """The packing of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in PACKINGS:
        raise ValueError(f"packing must be one of {', '.join(PACKINGS)}; got {name!r}")
    return PACKINGS[name]


def pack_epoch(
    lengths: Sizes,
    supervised: Sizes,
    *,
    sequence_length: int,
    sequence_targets: int,
    seed: int,
    epoch: int,
    packing: str = "best_fit",
    max_examples_per_sequence: int = 0,
) -> Bins:
    """The bins of one epoch in the order they are trained on: a pure function of its arguments.

    Examples are shuffled by (seed, epoch), which decides among examples of equal length, packed, and the bins shuffled.
    "sequential" shuffles neither: examples keep their order, and all epochs are the same.

    Args:
        lengths: tokens of each example.
        supervised: supervised tokens of each example.
        sequence_length: tokens S in a sequence.
        sequence_targets: target slots P in a sequence.
        seed: of the order.
        epoch: counted from 0.
        packing: a name in PACKINGS.
        max_examples_per_sequence: most examples in a bin; 0 for any number.

    Raises:
        ValueError: another name, or an example alone exceeds a bound.
    """
    pack, bounds = get_packing(packing), Bounds(sequence_length, sequence_targets, max_examples_per_sequence)
    if packing in KEEP_ORDER:
        return pack(lengths, supervised, bounds)
    order = permutation(len(lengths), seed, epoch, 0)
    bins = pack(lengths[order], supervised[order], bounds).renamed(order)
    return bins.take(permutation(len(bins), seed, epoch, 1))


def supervised_capacity(
    lengths: Sizes,
    supervised: Sizes,
    sequence_length: int,
    quantile: int | float,
    packing: str = "best_fit",
    max_examples_per_sequence: int = 0,
) -> int:
    """The static number P of target slots in a sequence.

    Examples (a sample, where there are very many) are packed by tokens alone; P is that quantile of the supervised
    tokens of a bin, at least those of any single example (so that none is lost), rounded up to a multiple of 8. Where
    nearly all positions are supervised P is sequence_length, which means "every position has its slot" and needs no
    gathering.

    Args:
        lengths: tokens of each example.
        supervised: supervised tokens of each example.
        sequence_length: tokens S in a sequence.
        quantile: between 0 (tightest bound, bins close early) and 1 (no bin ever closes early).
        packing: a name in PACKINGS.
        max_examples_per_sequence: cap on examples in a bin; 0: none.

    Raises:
        ValueError: quantile outside [0, 1], no examples, or an example longer than `sequence_length`.
    """
    if not len(lengths):
        raise ValueError("There are no examples to take the number of supervised tokens from.")
    sample = _sample(len(lengths), packing)
    Bounds(sequence_length, sequence_length).check_examples(lengths, supervised)
    found = supervised[sample]
    bins = pack_epoch(
        lengths[sample],
        found,
        sequence_length=sequence_length,
        sequence_targets=sequence_length,
        seed=0,
        epoch=0,
        packing=packing,
        max_examples_per_sequence=max_examples_per_sequence,
    )
    return target_slots(bins.sums(found), int(supervised.max()), sequence_length, quantile)


def target_slots(in_bins: Sizes, largest: int, sequence_length: int, quantile: int | float) -> int:
    """P from the supervised tokens of bins that were closed by tokens alone; see `supervised_capacity`.

    Args:
        in_bins: supervised tokens of each bin.
        largest: supervised tokens of the example that has most.
        sequence_length: tokens S in a sequence.
        quantile: of `in_bins`.

    Raises:
        ValueError: quantile outside [0, 1].
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"The quantile of supervised tokens must lie between 0 and 1, got {quantile}.")
    wanted = max(int(np.ceil(np.quantile(in_bins, quantile))), largest, 1)
    rounded = -(-wanted // _TARGETS_MULTIPLE) * _TARGETS_MULTIPLE
    return sequence_length if rounded >= _NEARLY_ALL * sequence_length else rounded


def _sample(count: int, packing: str) -> np.ndarray:
    """Examples that stand for all, in their order: a random choice, or the first where order matters."""
    if packing in KEEP_ORDER:
        return np.arange(min(count, _SAMPLE))
    return np.sort(begin_of_permutation(count, _SAMPLE, 0))


@dataclasses.dataclass(frozen=True)
class PackingReport:
    """How well the examples fill the batch, in one epoch.

    Attributes:
        examples: of the data set.
        bins: sequences that hold them in one epoch.
        sequence_length: tokens S in a bin.
        sequence_targets: target slots P in a bin.
        efficiency: tokens / (bins * sequence_length).
        target_efficiency: supervised tokens / (bins * sequence_targets).
        efficiency_without_bound: `efficiency` if bins were closed by tokens alone; of a sample, where there are very
            many examples.
        is_epoch: True if `bins` are those of an epoch; a mixture whose sources have weights has none.
        sources: of each source, where there are several, its examples and tokens, and its share in the tokens of the
            bins.
    """

    examples: int
    bins: int
    sequence_length: int
    sequence_targets: int
    efficiency: float
    target_efficiency: float
    efficiency_without_bound: float
    is_epoch: bool = True
    sources: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)


def packing_report(
    examples: TokenizedExamples,
    *,
    sequence_length: int,
    sequence_targets: int,
    seed: int = 0,
    packing: str = "best_fit",
    max_examples_per_sequence: int = 0,
    bins: Bins | None = None,
    is_epoch: bool = True,
) -> PackingReport:
    """Compares epoch 0, packed with the bound on supervised tokens and without.

    `bins` are those of epoch 0 (of the first block of a mixture), where they are known already; the other arguments are
    as in `pack_epoch`.
    """
    lengths, supervised = examples.lengths, examples.supervised
    how = {
        "sequence_length": sequence_length,
        "seed": seed,
        "epoch": 0,
        "packing": packing,
        "max_examples_per_sequence": max_examples_per_sequence,
    }
    if bins is None:
        bins = pack_epoch(lengths, supervised, sequence_targets=sequence_targets, **how)
    sample = _sample(len(examples), packing)
    unbounded = pack_epoch(lengths[sample], supervised[sample], sequence_targets=sequence_length, **how)
    return PackingReport(
        examples=len(examples),
        bins=len(bins),
        sequence_length=sequence_length,
        sequence_targets=sequence_targets,
        efficiency=int(bins.sums(lengths).sum()) / max(len(bins) * sequence_length, 1),
        target_efficiency=int(bins.sums(supervised).sum()) / max(len(bins) * sequence_targets, 1),
        efficiency_without_bound=int(lengths[sample].sum()) / max(len(unbounded) * sequence_length, 1),
        is_epoch=is_epoch,
        sources=_by_source(examples, lengths, bins),
    )


def _by_source(examples: TokenizedExamples, lengths: Sizes, bins: Bins) -> dict[str, dict[str, float]]:
    names = examples.sources.names
    if len(names) < 2:
        return {}
    count, tokens = examples.sources.totals().tolist(), examples.sources.totals(lengths).tolist()
    drawn = examples.sources.totals(lengths, bins.members)
    shares = (drawn / drawn.sum()).tolist()
    return {
        name: {"examples": count[i], "tokens": tokens[i], "share_of_tokens": shares[i]} for i, name in enumerate(names)
    }
