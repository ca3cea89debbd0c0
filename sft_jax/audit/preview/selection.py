"""Chooses what the page shows: all records if they are few, else those that findings name, the longest, and evenly
spaced others, up to the number that is asked for.
"""

import collections
import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.audit.checks import CheckedData, Finding
from sft_jax.audit.preview.examples import KINDS, dropped_row, rendered_examples
from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.data.tokenized import DroppedRow

ROW_NAME = re.compile(r"[\w./-]+:\d+")  # an id in a text
_LONGEST = 20  # examples that are on the page for their length
_MAX_BYTES = 32_000_000  # of JSON on the page: what browsers still open in a second or so

Pair = tuple[Record, DroppedRow]


@dataclasses.dataclass(frozen=True)
class PageExamples:
    """Examples on the page, and of how many rows there are.

    Attributes:
        examples: from examples.py; rows that were dropped are among them.
        shown: of each kind, how many rows of the files are on the page, and how many there are.
    """

    examples: list[dict[str, Any]]
    shown: dict[str, tuple[int, int]]

    @property
    def note(self) -> str:
        """What is on the page, in words."""
        parts = [f"{some:,} of {of_all:,} {kind}" for kind, (some, of_all) in self.shown.items() if of_all]
        if all(some == of_all for some, of_all in self.shown.values()):
            return f"All rows are on this page: {', '.join(parts)}."
        return (
            f"On this page: {', '.join(parts)}. Those that findings name are among them, and the longest; the others "
            "lie at even distances. --rows=N puts more on it."
        )


def select_examples(
    data: CheckedData,
    renderer: ConversationRenderer,
    removed: Sequence[Pair],
    findings: Sequence[Finding],
    notes: Mapping[str, str],
    wanted: int,
    progress: Callable[[int, int], None] | None = None,
) -> PageExamples:
    """The examples of the page.

    Args:
        data: what was checked.
        renderer: as in training.
        removed: records that cleaning dropped.
        findings: whose rows are to be on the page.
        notes: by id of the row, what else is to be said of it.
        wanted: most rows that are trained on; of the others there are up to a fifth and a tenth as many.
        progress: called with (rows done, rows in all).
    """
    named = named_rows(findings)
    kept, lost = _parted(data, removed)
    longest = {data.examples.ids[int(i)] for i in np.argsort(-data.examples.lengths, kind="stable")[:_LONGEST]}
    trained = _some(kept, lambda record: record.id in named or record.id in longest, wanted)
    dropped = _some(lost, lambda pair: pair[0].id in named, max(wanted // 5, 1))
    held_out = _some(data.held_out_records, lambda record: record.id in named, max(wanted // 10, 1))

    def made() -> Iterator[dict[str, Any]]:
        yield from rendered_examples(trained, renderer, "trained", notes, data.sequence_length, progress)
        yield from (dropped_row(*pair) for pair in dropped)
        yield from rendered_examples(held_out, renderer, "held out", {}, data.sequence_length)

    found = within_bytes(made())
    ids = collections.defaultdict(set)  # a record may give several examples
    for example in found:
        ids[example["kind"]].add(example["id"])
    there = zip(KINDS, (len(kept), len(lost), len(data.held_out_records)), strict=True)
    return PageExamples(found, {kind: (len(ids[kind]), count) for kind, count in there})


def named_rows(findings: Sequence[Finding]) -> set[str]:
    """Ids of the rows that findings name, as examples or in their texts."""
    places = [place for finding in findings for place in finding.examples]
    return {place.row_id for place in places} | {name for place in places for name in ROW_NAME.findall(place.text)}


def chosen(count: int, named: Iterable[int], wanted: int) -> list[int]:
    """At most `wanted` indices below `count`, in order: the named ones, and others at even distances.

    chosen(10, [3], 4) -> [0, 3, 5, 9]
    """
    if wanted >= count:
        return list(range(count))
    kept = sorted(set(named))[:wanted]
    others = np.setdiff1d(np.arange(count), kept)
    left = wanted - len(kept)
    even = others[np.linspace(0, len(others) - 1, left).round().astype(int)] if left else np.zeros(0, int)
    return sorted({*kept, *even.tolist()})


def within_bytes(examples: Iterable[dict[str, Any]], most: int = _MAX_BYTES) -> list[dict[str, Any]]:
    """The first examples, as many as fit into so many bytes of JSON."""
    kept, used = [], 0
    for example in examples:
        used += len(json.dumps(example))
        if used > most:
            break
        kept.append(example)
    return kept


def _parted(data: CheckedData, removed: Sequence[Pair]) -> tuple[list[Record], list[Pair]]:
    """The records that are trained on, and all others with the reason."""
    trained = set(data.examples.ids)
    reasons = {row.id: row for row in data.dropped}
    kept = [record for record in data.records if record.id in trained]
    lost = [(record, reasons[record.id]) for record in data.records if record.id not in trained]
    return kept, [*removed, *lost]


def _some(items: Sequence[Any], is_named: Callable[[Any], bool], wanted: int) -> list[Any]:
    named = (index for index, item in enumerate(items) if is_named(item))
    return [items[index] for index in chosen(len(items), named, wanted)]
