"""Packing: which rows share a row of the batch (a bin), so that little of it is padding.

Pure functions from sizes to bins; nothing here sees a token. `PackPlan` (plan.py) strings the bins of all epochs into
one endless stream.
"""

import dataclasses

import numpy as np
from jaxtyping import Int64

from sft_jax.data.tokenized import Sizes, TokenizedRows

Bin = Int64[np.ndarray, "_"]  # indices of the rows in one row of the batch
Order = Int64[np.ndarray, "count"]

WINDOW_ROWS = 8192  # rows packed together: keeps the cost linear in the number of rows; costs < 1 bin a window
_TARGETS_MULTIPLE = 8  # the number of target slots is a multiple of this (vector width of the accelerator)
_NEARLY_ALL = 0.9  # from this share of supervised positions on, gathering them does not pay


def first_fit_decreasing(lengths: Sizes, supervised: Sizes, row_tokens: int, row_targets: int) -> list[Bin]:
    """Packs rows into bins closed at either bound: tokens or supervised tokens.

    Rows are taken by decreasing size, max(tokens / row_tokens, supervised / row_targets), ties in the given order, and
    go into the first bin with room for both (vector first-fit-decreasing: Kou and Markowsky 1977). No row is ever cut.

    With row_tokens 4 and lengths [3, 4, 1]: [[1], [0, 2]].

    Args:
        lengths: tokens of each row.
        supervised: supervised tokens of each row.
        row_tokens: most tokens in a bin.
        row_targets: most supervised tokens in a bin.

    Returns:
        Bins of row indices; each row in exactly one.

    Raises:
        ValueError: a row alone exceeds a bound.
    """
    _check_rows_fit(lengths, supervised, row_tokens, row_targets)
    order = np.argsort(-np.maximum(lengths * row_targets, supervised * row_tokens), kind="stable")
    free_tokens = np.empty(len(order), np.int32)
    free_targets = np.empty(len(order), np.int32)
    bins: list[list[int]] = []
    smallest_length, fewest_supervised = int(lengths.min(initial=0)), int(supervised.min(initial=0))
    first, last = 0, 0  # bins before `first` have no room for any row; bins from `last` on are not opened
    for row, tokens, targets in zip(order.tolist(), lengths[order].tolist(), supervised[order].tolist(), strict=True):
        while first < last and (free_tokens[first] < smallest_length or free_targets[first] < fewest_supervised):
            first += 1
        room = (free_tokens[first:last] >= tokens) & (free_targets[first:last] >= targets)
        place = first + int(room.argmax()) if last > first else last
        if place == last or not room[place - first]:
            place, last = last, last + 1
            free_tokens[place], free_targets[place] = row_tokens, row_targets
            bins.append([])
        bins[place].append(row)
        free_tokens[place] -= tokens
        free_targets[place] -= targets
    return [np.array(rows, np.int64) for rows in bins]


def pack_epoch(
    lengths: Sizes,
    supervised: Sizes,
    *,
    row_tokens: int,
    row_targets: int,
    seed: int,
    epoch: int,
    packing: bool = True,
) -> list[Bin]:
    """The bins of one epoch in the order they are trained on: a pure function of its arguments.

    Rows are shuffled by (seed, epoch), packed in windows of `WINDOW_ROWS`, and the bins shuffled.

    Raises:
        ValueError: a row alone exceeds a bound.
    """
    order = permutation(len(lengths), seed, epoch, 0)
    if packing:
        bins = []
        for start in range(0, len(order), WINDOW_ROWS):
            window = order[start : start + WINDOW_ROWS]
            found = first_fit_decreasing(lengths[window], supervised[window], row_tokens, row_targets)
            bins.extend(window[members] for members in found)
    else:
        _check_rows_fit(lengths, supervised, row_tokens, row_targets)
        bins = [order[i : i + 1] for i in range(len(order))]
    return [bins[i] for i in permutation(len(bins), seed, epoch, 1)]


def permutation(count: int, seed: int, epoch: int, stream: int) -> Order:
    """A shuffled range(count), the same in every NumPy version (raw bit streams are guaranteed, `shuffle` is not)."""
    keys = np.random.PCG64(np.random.SeedSequence([seed, epoch, stream])).random_raw(count)
    return np.argsort(np.asarray(keys, np.uint64), kind="stable").astype(np.int64)


def supervised_capacity(
    lengths: Sizes, supervised: Sizes, row_tokens: int, quantile: int | float, packing: bool = True
) -> int:
    """The static number P of target slots in a row of the batch.

    Rows are packed by tokens alone; P is that quantile of the supervised tokens of a bin, at least those of any
    single row (so that none is lost), rounded up to a multiple of 8. Where nearly all positions are supervised P is
    row_tokens, which means "every position has its slot" and needs no gathering.

    Args:
        lengths: tokens of each row.
        supervised: supervised tokens of each row.
        row_tokens: tokens S in a row of the batch.
        quantile: between 0 (tightest bound, bins close early) and 1 (no bin ever closes early).
        packing: False if each row has a bin of its own.

    Raises:
        ValueError: quantile outside [0, 1], no rows, or a row longer than `row_tokens`.
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"The quantile of supervised tokens must lie between 0 and 1, got {quantile}.")
    if not len(lengths):
        raise ValueError("There are no rows to take the number of supervised tokens from.")
    bins = pack_epoch(
        lengths,
        supervised,
        row_tokens=row_tokens,
        row_targets=row_tokens,
        seed=0,
        epoch=0,
        packing=packing,
    )
    in_bin = [supervised[rows].sum() for rows in bins]
    wanted = max(int(np.ceil(np.quantile(in_bin, quantile))), int(supervised.max()), 1)
    rounded = -(-wanted // _TARGETS_MULTIPLE) * _TARGETS_MULTIPLE
    return row_tokens if rounded >= _NEARLY_ALL * row_tokens else rounded


@dataclasses.dataclass(frozen=True)
class PackingReport:
    """How well the rows fill the batch, in one epoch.

    Attributes:
        rows: rows (examples) of the data set.
        bins: rows of the batch that hold them.
        row_tokens: tokens S in a bin.
        row_targets: target slots P in a bin.
        efficiency: tokens / (bins * row_tokens).
        target_efficiency: supervised tokens / (bins * row_targets).
        efficiency_without_bound: `efficiency` if bins were closed by tokens alone.
    """

    rows: int
    bins: int
    row_tokens: int
    row_targets: int
    efficiency: float
    target_efficiency: float
    efficiency_without_bound: float


def packing_report(
    rows: TokenizedRows, *, row_tokens: int, row_targets: int, seed: int = 0, packing: bool = True
) -> PackingReport:
    """Packs epoch 0 with and without the bound on supervised tokens and compares."""
    lengths, supervised = rows.lengths, rows.supervised
    bins, unbounded = (
        len(
            pack_epoch(
                lengths,
                supervised,
                row_tokens=row_tokens,
                row_targets=targets,
                seed=seed,
                epoch=0,
                packing=packing,
            )
        )
        for targets in (row_targets, row_tokens)
    )
    return PackingReport(
        rows=len(rows),
        bins=bins,
        row_tokens=row_tokens,
        row_targets=row_targets,
        efficiency=int(lengths.sum()) / max(bins * row_tokens, 1),
        target_efficiency=int(supervised.sum()) / max(bins * row_targets, 1),
        efficiency_without_bound=int(lengths.sum()) / max(unbounded * row_tokens, 1),
    )


def _check_rows_fit(lengths: Sizes, supervised: Sizes, row_tokens: int, row_targets: int) -> None:
    for sizes, bound, what in ((lengths, row_tokens, "tokens"), (supervised, row_targets, "supervised tokens")):
        if len(sizes) and sizes.max() > bound:
            row = int(sizes.argmax())
            raise ValueError(
                f"Row {row} has {sizes[row]} {what}, a row of the batch holds {bound}. Rows are never cut: "
                "drop it before packing or raise the bound."
            )
