"""Best-fit-decreasing packing by a histogram of lengths: its cost grows with the number of lengths, not with examples
times bins.

Examples of one length are placed together, as Krell et al. (2021, "Efficient Sequence Packing without
Cross-contamination") do; the result equals best fit
applied to one example at a time.
"""

import bisect

import numpy as np

from sft_jax.data.packing.bins import Bins, Bounds, Sizes
from sft_jax.data.packing.first_fit import first_fit_decreasing, in_windows
from sft_jax.data.sorting import by_number


def best_fit_decreasing(lengths: Sizes, supervised: Sizes, bounds: Bounds) -> Bins:
    """Packs examples, longest first, each into the fullest bin that has room for it; ties in the given order.

    Bins are first closed by tokens (and the cap on examples) alone. Those with too many supervised tokens, which are
    few by the choice of `bounds.targets`, are then distributed anew, each together with a bin that has few; what finds
    no place goes into bins of its own, by first fit. No example is ever cut.

    With 4 tokens and lengths [3, 4, 1]: [[1], [0, 2]].

    Args:
        lengths: tokens of each example.
        supervised: supervised tokens of each example.
        bounds: what closes a bin.

    Returns:
        Bins of example indices; each example in exactly one.

    Raises:
        ValueError: an example alone exceeds a bound.
    """
    bounds.check_examples(lengths, supervised)
    bins = _by_tokens(lengths, bounds)
    targets = bins.sums(supervised)
    if not len(bins) or targets.max() <= bounds.targets:
        return bins
    over = np.flatnonzero(targets > bounds.targets)
    # An example of more than half a bin leaves little room for others; the first example of a bin is its longest.
    mixable = np.flatnonzero(
        (targets <= bounds.targets) & (lengths[bins.members[bins.offsets[:-1]]] <= bounds.tokens // 2)
    )
    company = mixable[np.argsort(targets[mixable], kind="stable")[: len(over)]]
    dealt, rest = _deal(bins, over, company, lengths, supervised, bounds)
    last = in_windows(first_fit_decreasing, lengths[rest], supervised[rest], bounds).renamed(rest)
    untouched = np.setdiff1d(np.arange(len(bins)), np.concatenate([over, company]))
    return Bins.concatenated([bins.take(untouched), dealt, last])


def _deal(
    bins: Bins, over: np.ndarray, company: np.ndarray, lengths: Sizes, supervised: Sizes, bounds: Bounds
) -> tuple[Bins, np.ndarray]:
    """Distributes the examples of pairs of bins anew: longest first, each into the bin of its pair with more room.

    Returns:
        The bins of all pairs, and the examples that found no room in their pair.
    """
    paired = [bins.take(over), bins.take(company)]
    examples = np.concatenate([some.members for some in paired])
    pair = np.concatenate([np.repeat(np.arange(len(some)), some.sizes) for some in paired])
    order = np.lexsort((-lengths[examples], pair))
    examples, pair = examples[order], pair[order]
    begin = np.flatnonzero(np.diff(pair, prepend=-1))
    count = np.diff(np.append(begin, len(examples)))
    free = np.tile([bounds.tokens, bounds.targets, bounds.segments or len(examples)], (len(begin), 2, 1))
    side = np.full(len(examples), 2)
    for rank in range(int(count.max(initial=0))):
        here = np.flatnonzero(count > rank)
        at = begin[here] + rank
        size = np.stack([lengths[examples[at]], supervised[examples[at]], np.ones(len(at), np.int64)], axis=1)
        left = free[here] - size[:, None]
        room = np.where((left >= 0).all(axis=2), (left[..., :2] / (bounds.tokens, bounds.targets)).min(axis=2), -1.0)
        chosen = room.argmax(axis=1)
        fits = room[np.arange(len(here)), chosen] >= 0
        free[here[fits], chosen[fits]] = left[fits, chosen[fits]]
        side[at[fits]] = chosen[fits]
    placed = side < 2
    dealt = Bins.by_number(examples[placed], (2 * pair + side)[placed], 2 * len(begin))
    return dealt.take(np.flatnonzero(dealt.sizes)), np.sort(examples[~placed])


def _by_tokens(lengths: Sizes, bounds: Bounds) -> Bins:
    """Best fit by length alone."""
    # Of a small dtype the stable sorts in `by_number` are radix sorts.
    dtype = np.min_scalar_type(bounds.tokens)
    shortfalls = np.subtract(bounds.tokens, lengths, dtype=dtype, casting="unsafe")
    counts = np.bincount(shortfalls)
    numbers, open_bins, done = np.empty(len(lengths), np.int32), _OpenBins(bounds), 0
    for shortfall in np.flatnonzero(counts).tolist():
        count = int(counts[shortfall])
        open_bins.place(bounds.tokens - shortfall, numbers[done : done + count])
        done += count
    return Bins.by_number(by_number(shortfalls), numbers, open_bins.count)


class _OpenBins:
    """Bins that still have room, grouped by (free tokens, examples that may still be added)."""

    def __init__(self, bounds: Bounds):
        self._bounds = bounds
        self._groups: dict[tuple[int, int], list[np.ndarray]] = {}
        self._keys: list[tuple[int, int]] = []  # of the groups, sorted: the fullest bins first
        self.count = 0

    def place(self, size: int, numbers: np.ndarray) -> None:
        """Places as many examples of one size as `numbers` is long, and writes there which bin each is in.

        The fullest bin with room for an example takes as many as fit: with each it stays the fullest.
        """
        placed, changed = 0, []
        first = used = bisect.bisect_left(self._keys, (size, 0))
        while placed < len(numbers):
            if used < len(self._keys):
                free, segments = self._keys[used]
                bins = np.concatenate(self._groups.pop((free, segments)))
                used += 1
            else:
                free, segments = self._bounds.tokens, self._bounds.segments
                bins = self._opened(-(-(len(numbers) - placed) // _at_once(size, free, segments)))
            each = _at_once(size, free, segments)
            full, rest = divmod(min(len(numbers) - placed, each * len(bins)), each)
            begun = full + (rest > 0)
            for taken, some in ((each, bins[:full]), (rest, bins[full:begun]), (0, bins[begun:])):
                numbers[placed : placed + taken * len(some)] = np.repeat(some, taken)
                placed += taken * len(some)
                changed.append((free - taken * size, segments - taken if segments else 0, some))
        del self._keys[first:used]
        for free, segments, bins in changed:
            if len(bins) and free and (segments or not self._bounds.segments):
                self._add((free, segments), bins)

    def _opened(self, wanted: int) -> np.ndarray:
        self.count += wanted
        return np.arange(self.count - wanted, self.count, dtype=np.int32)

    def _add(self, key: tuple[int, int], bins: np.ndarray) -> None:
        if key not in self._groups:
            self._groups[key] = []
            bisect.insort(self._keys, key)
        self._groups[key].append(bins)


def _at_once(size: int, free: int, segments: int) -> int:
    """How many examples of a size a bin takes, given its free tokens and how many more it may hold (0: any number)."""
    return min(free // size, segments or free)
