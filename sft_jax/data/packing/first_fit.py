"""First-fit-decreasing packing under two bounds at once, in windows, so that its cost is linear in the examples."""

from collections.abc import Callable

import numpy as np

from sft_jax.data.packing.bins import Bins, Bounds, Sizes

WINDOW_EXAMPLES = 8192  # examples packed together where all at once would cost too much; a window costs < 1 bin


def first_fit_decreasing(lengths: Sizes, supervised: Sizes, bounds: Bounds) -> Bins:
    """Packs examples into bins closed at either bound: tokens or supervised tokens.

    Examples are taken by decreasing size, max(tokens / bounds.tokens, supervised / bounds.targets), ties in the given
    order, and go into the first bin with room for both (vector first-fit-decreasing: Kou and Markowsky 1977). No
    example is ever cut. The cost grows with examples times bins.

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
    sizes = np.maximum(lengths * np.int64(bounds.targets), supervised * np.int64(bounds.tokens))
    order = np.argsort(-sizes, kind="stable").astype(np.int32)
    numbers = np.empty(len(order), np.int32)
    free_tokens, free_targets, free_segments = (np.empty(len(order), np.int32) for _ in range(3))
    shortest, fewest = int(lengths.min(initial=0)), int(supervised.min(initial=0))
    first, last = 0, 0  # bins before `first` have no room for any example; bins from `last` on are not opened
    in_order = zip(lengths[order].tolist(), supervised[order].tolist(), strict=True)
    for rank, (tokens, targets) in enumerate(in_order):
        while first < last and (
            free_tokens[first] < shortest or free_targets[first] < fewest or not free_segments[first]
        ):
            first += 1
        room = (free_tokens[first:last] >= tokens) & (free_targets[first:last] >= targets)
        if bounds.segments:
            room &= free_segments[first:last] > 0
        place = first + int(room.argmax()) if last > first else last
        if place == last or not room[place - first]:
            place, last = last, last + 1
            free_tokens[place], free_targets[place] = bounds.tokens, bounds.targets
            free_segments[place] = bounds.segments or len(order)
        numbers[rank] = place
        free_tokens[place] -= tokens
        free_targets[place] -= targets
        free_segments[place] -= 1
    return Bins.by_number(order, numbers, last)


def in_windows(
    pack: Callable[[Sizes, Sizes, Bounds], Bins],
    lengths: Sizes,
    supervised: Sizes,
    bounds: Bounds,
    window_examples: int = WINDOW_EXAMPLES,
) -> Bins:
    """Packs `window_examples` examples at a time, as they come."""
    parts = []
    for start in range(0, len(lengths), window_examples):
        window = np.arange(start, min(start + window_examples, len(lengths)), dtype=np.int32)
        parts.append(pack(lengths[window], supervised[window], bounds).renamed(window))
    return Bins.concatenated(parts)
