"""Sizes of the data: examples, tokens, lengths, how well they pack, the longest; and the rows that are dropped."""

from collections.abc import Sequence

import numpy as np

from sft_jax.audit.checked_data import CheckedData
from sft_jax.audit.findings import Observation, counted, observed, places
from sft_jax.data.packing.best_fit import best_fit_decreasing
from sft_jax.data.packing.bins import Bounds, Sizes
from sft_jax.data.rendering.turns import STARTS_WITH_ANSWER
from sft_jax.data.tokenized import DroppedRow, dropped_tokens, group_dropped

_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_BARS = 20
_LENGTHS_SHOWN = 3  # that would keep some of what is too long
_SHORTENED = {
    "truncate_left": "leaves out the oldest turns of those that have several",
    "truncate_right": "cuts off their ends",
    "split": "makes several examples of what is no conversation",
}


def sizes(data: CheckedData) -> list[Observation]:
    """Examples, tokens, the supervised share, quantiles and histogram of lengths, packing by sequence length."""
    lengths, supervised = data.examples.lengths, data.examples.supervised
    if not len(lengths):
        return []
    tokens, trained = int(lengths.sum()), int(supervised.sum())
    longest = np.argsort(-lengths, kind="stable")[:5]
    return [
        Observation(
            f"{len(lengths):,} examples, {tokens:,} tokens, {trained / tokens:.1%} of them trained; "
            f"{int(np.median(lengths)):,} tokens in the middle one, {int(lengths.max()):,} in the longest",
            0,
            0.0,
            places((data.examples.ids[i], f"{lengths[i]:,} tokens, {supervised[i]:,} trained") for i in longest),
            numbers={
                "examples": len(lengths),
                "tokens": tokens,
                "supervised_tokens": trained,
                "supervised_share": trained / tokens,
                "length_quantiles": quantiles(lengths),
                "supervised_quantiles": quantiles(supervised),
                "length_histogram": histogram(lengths),
                "packing": {size: packing_efficiency(lengths, size) for size in _sequence_lengths(data)},
            },
        )
    ]


def dropped_rows(data: CheckedData) -> list[Observation]:
    """Rows that tokenization left out, by reason."""
    groups = group_dropped(data.dropped).items()
    rows = read_rows(data)
    many = len(groups) > 1  # each of several reasons may be few, and all of them half
    whole = _dropped_for_all(len(data.dropped), rows, len(groups)) if many else []
    return whole + [
        observation
        for reason, group in groups
        for observation in observed(
            f"{counted(len(group), 'row is', 'rows are')} dropped: {reason}",
            group,
            rows,
            lambda row: (row.id, row.detail),
            _how_to_keep(data, reason, group),
        )
    ]


def _how_to_keep(data: CheckedData, reason: str, group: Sequence[DroppedRow]) -> str:
    """What keeps the rows that are dropped for one reason."""
    if reason == STARTS_WITH_ANSWER:
        return "The cleaning step drop_leading_answers keeps their conversations from the first question on."
    lengths = dropped_tokens(group)
    if not lengths.all():
        return "They are not trained on: repair them if they matter."
    first, *more = _longer(data.sequence_length, int(lengths.max()))
    longer = [f"{first} would keep {_share(lengths, first)} of them", *(f"{n} {_share(lengths, n)}" for n in more)]
    shorter = [f"={name} {what}" for name, what in _SHORTENED.items() if name != data.too_long]
    return (
        f"--config.data.sequence_length={', '.join(longer)}, if the model has so many positions. "
        f"--config.data.masking.too_long{'; '.join(shorter)}."
    )


def _longer(sequence_length: int, longest: int) -> list[int]:
    """Sequence lengths to choose from: twice as long each, the last one long enough for all."""
    lengths = []
    while (sequence_length := 2 * sequence_length) < longest:
        lengths.append(sequence_length)
    return [*lengths[:_LENGTHS_SHOWN], longest]


def _share(lengths: Sizes, size: int) -> str:
    share = float(np.mean(lengths <= size))
    return "all" if share == 1 else f"{share:.1%}"


def read_rows(data: CheckedData) -> int:
    """How many rows were read, with those that could not be parsed."""
    if data.whole is not None:
        return data.whole.counts.kept + len(data.dropped)
    records = {record.id for record in data.records}
    return len(records) + sum(row.id not in records for row in data.dropped)


def _dropped_for_all(dropped: int, rows: int, reasons: int) -> list[Observation]:
    title = f"{dropped:,} of {rows:,} rows are dropped, for {reasons} reasons"
    return [Observation(title, dropped, dropped / rows, advice="They are not trained on: see each reason.")]


def quantiles(sizes: Sizes) -> dict[str, int]:
    """Sizes at shares of the examples: {"0%": smallest, ..., "50%": median, ..., "100%": largest}."""
    values = np.quantile(sizes, _QUANTILES, method="higher")
    return {f"{share:.0%}": int(value) for share, value in zip(_QUANTILES, values, strict=True)}


def histogram(sizes: Sizes) -> dict[str, list[int]]:
    """{"edges": e, "examples": n}: n[i] of them have a size in [e[i], e[i + 1]).

    Bins are of equal width, or of equal ratio where the largest size is over 10 times the smallest.
    """
    low, high = int(sizes.min()), int(sizes.max()) + 1
    spaced = np.geomspace if high > 10 * max(low, 1) else np.linspace
    edges = np.unique(np.round(spaced(max(low, 1), high, _BARS + 1)).astype(np.int64))
    edges[0] = low
    counts, _ = np.histogram(sizes, edges)
    return {"edges": edges.tolist(), "examples": counts.tolist()}


def packing_efficiency(lengths: Sizes, sequence_length: int) -> dict[str, float]:
    """Packed into sequences of that length: the share of positions that are used, and how many examples are too long.

    "unpacked" is that share with one example a sequence.
    """
    fitting = lengths[lengths <= sequence_length]
    bins = len(best_fit_decreasing(fitting, np.zeros_like(fitting), Bounds(sequence_length, sequence_length)))
    return {
        "efficiency": float(fitting.sum() / (bins * sequence_length)) if bins else 0.0,
        "unpacked": float(fitting.mean() / sequence_length) if bins else 0.0,
        "too_long": len(lengths) - len(fitting),
    }


def _sequence_lengths(data: CheckedData) -> list[int]:
    """Powers of two from the median length to the first that holds the longest example, and the run's own length."""
    lengths = data.examples.lengths
    powers = [1 << exponent for exponent in range(7, 18)]
    wanted = [size for size in powers if np.median(lengths) <= size < 2 * lengths.max()]
    return sorted({*wanted, data.sequence_length})
