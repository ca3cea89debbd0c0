"""Tokenizing: records as examples of tokens, a chunk at a time; no record disappears without a reason.

The step between rendering and tokenized examples. Every record gives examples or is dropped, and the sums are checked.
"""

import collections
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from sft_jax.data.conversations import Preference
from sft_jax.data.reading import FLAGS, flags_of_source
from sft_jax.data.records import Record, RecordError
from sft_jax.data.rendering import ConversationRenderer, ExampleError, RenderedExample
from sft_jax.data.tokenized import Counts, DroppedRow, Tokenized, TokenizedExamples, group_dropped
from sft_jax.data.tokenized.record_keys import RecordKeys
from sft_jax.data.views import NO_TEMPLATE, PromptTemplate, view_of

RECORDS_PER_CALL = 256  # records handed to the tokenizer at once: enough to amortise the call, small for progress


class NoExamplesError(ValueError):
    """Every row was dropped, so there is nothing to train on. The message lists the reasons.

    Attributes:
        longest: tokens of the longest example that was dropped for its length; 0 where none was.
    """

    def __init__(self, message: str, longest: int = 0):
        """The error, with what `longest` says."""
        super().__init__(message)
        self.longest = longest


def tokenize_chunk(
    records: Sequence[Record | DroppedRow],
    renderer: ConversationRenderer,
    max_example_tokens: int,
    template: PromptTemplate = NO_TEMPLATE,
) -> Tokenized:
    """Tokens, weights and keys of a few records; what is dropped already stays dropped.

    The weight of a record is multiplied into those of its tokens. Keys are made without the prompt template.

    Raises:
        RecordError: the weight of a record is negative or not finite.
        ValueError: an example is too long, and the masking makes that an error.
        RuntimeError: a record that the renderer fails on.
    """
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    branches: list[np.ndarray | None] = []
    margins: list[float] = []
    names: list[tuple[str, str, str]] = []
    dropped: list[DroppedRow] = []
    changed: collections.Counter[str] = collections.Counter()
    kept_records = dropped_records = 0
    first_examples: list[int] = []
    for record, found in zip(records, _outcomes(records, renderer, max_example_tokens), strict=True):
        if isinstance(record, Record):
            first_examples.append(-1 - len(dropped) if isinstance(found, DroppedRow) else len(pairs))
        if isinstance(found, DroppedRow):
            dropped.append(found)
            dropped_records += 1
            continue
        for example in found:
            pairs.append((example.tokens, example.weights * np.float32(record.weight)))
            branches.append(example.branches)
            margins.append(record.example.margin if isinstance(record.example, Preference) else 0.0)
            names.append((record.id, record.group, record.source))
            changed[example.changed.partition(":")[0]] += bool(example.changed)
        kept_records += bool(found)
    ids, groups, sources = zip(*names, strict=True) if names else ((), (), ())
    examples = TokenizedExamples.from_examples(pairs, ids, groups, sources, branches, margins)
    counts = Counts(len(records), kept_records, dropped_records, len(examples))
    views = [view_of(record, renderer.tokenizer) for record in records if isinstance(record, Record)]
    return Tokenized(
        examples,
        dropped,
        counts,
        dict(+changed),
        keys=RecordKeys.of(views, template),
        first_examples=np.array(first_examples, np.int64),
    )


def _outcomes(
    records: Sequence[Record | DroppedRow], renderer: ConversationRenderer, max_example_tokens: int
) -> list[list[RenderedExample] | DroppedRow]:
    """The examples of each record, or why there are none."""
    outcomes = [record if isinstance(record, DroppedRow) else _weightless(record) for record in records]
    waiting = [record for record, outcome in zip(records, outcomes, strict=True) if outcome is None]
    rendered = iter(zip(waiting, _render(waiting, renderer, max_example_tokens), strict=True))
    for number, outcome in enumerate(outcomes):
        if outcome is None:
            record, found = next(rendered)
            outcomes[number] = _dropped(record, found) if isinstance(found, ExampleError) else found
    return outcomes


def _dropped(record: Record, error: ExampleError) -> DroppedRow:
    """Raises ValueError where the run is to stop."""
    if error.stops:
        raise ValueError(_said_of(record, error))
    return DroppedRow(record.id, error.reason, _under_flags_of(record, error.detail), error.tokens)


def _said_of(record: Record, error: ValueError) -> str:
    return _under_flags_of(record, f"{record.id}: {error}")


def _under_flags_of(record: Record, text: str) -> str:
    """Advice about how rows are read names the flags of the source that the record is from."""
    return text.replace(FLAGS, flags_of_source(record.source))


def _weightless(record: Record) -> DroppedRow | None:
    """A record of weight 0 is dropped; None for others.

    Raises:
        RecordError: the weight makes no sense.
    """
    if not (math.isfinite(record.weight) and record.weight >= 0):
        raise RecordError(f"{record.id}: the weight of a row must be finite and not negative, got {record.weight}.")
    return DroppedRow(record.id, "weight 0") if np.float32(record.weight) == 0 else None  # 1e-60 too: of no effect


def _render(
    records: Sequence[Record], renderer: ConversationRenderer, max_example_tokens: int
) -> list[list[RenderedExample] | ExampleError]:
    """All at once; where that fails, one by one, to name the record it fails on."""
    try:
        return renderer.render_many([record.example for record in records], max_example_tokens)
    except (ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        for record in records:
            _render_named(record, renderer, max_example_tokens)
        raise error


def _render_named(record: Record, renderer: ConversationRenderer, max_example_tokens: int) -> None:
    try:
        renderer.render_many([record.example], max_example_tokens)
    except ValueError as error:
        raise ValueError(_said_of(record, error)) from error
    except (RuntimeError, LookupError, TypeError, AttributeError) as error:
        raise RuntimeError(f"{record.id}: rendering fails ({type(error).__name__}: {error})") from error


def tokenize_records(
    records: Sequence[Record],
    renderer: ConversationRenderer,
    max_example_tokens: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[TokenizedExamples, list[DroppedRow]]:
    """Tokens and weights of records that lie in memory; what cannot be used is dropped and named.

    Args:
        records: from `read_records`.
        renderer: the chat template and tokenizer of the model.
        max_example_tokens: the longest an example may be; the renderer's masking says what becomes of longer ones.
        progress: called with (records done, records in all) now and then.

    Returns:
        The examples in the order of the records, and the dropped rows.

    Raises:
        NoExamplesError: all rows were dropped.
        ValueError: an example is too long, and the masking makes that an error.
    """
    parts = []
    for start in range(0, len(records), RECORDS_PER_CALL):
        chunk = records[start : start + RECORDS_PER_CALL]
        parts.append(tokenize_chunk(chunk, renderer, max_example_tokens))
        if progress is not None:
            progress(start + len(chunk), len(records))
    examples = _joined([part.examples for part in parts])
    sum((part.counts for part in parts), Counts()).check(len(records), len(examples))
    dropped = [row for part in parts for row in part.dropped]
    if not len(examples):
        raise nothing_left(len(records), dropped)
    return examples, dropped


def _joined(parts: Sequence[TokenizedExamples]) -> TokenizedExamples:
    pairs = [part.example(index) for part in parts for index in range(len(part))]
    columns = [[(part.ids, part.groups, part.sources)[number] for part in parts] for number in range(3)]
    branches = [part.branches_of(index) for part in parts for index in range(len(part))]
    margins = [
        float(margin) for part in parts for margin in (np.zeros(len(part)) if part.margins is None else part.margins)
    ]
    names = (list(itertools.chain(*column)) for column in columns)
    return TokenizedExamples.from_examples(pairs, *names, branches, margins)


def nothing_left(count: int, dropped: Sequence[DroppedRow]) -> NoExamplesError:
    """The error that says why no example is left."""
    if not count:
        return NoExamplesError("There are no records to train on.")
    lines = [f"All {count} rows were dropped, nothing is left to train on:"]
    for reason, rows in group_dropped(dropped).items():
        first = f"{rows[0].id}, {rows[0].detail}" if rows[0].detail else rows[0].id
        lines.append(f"  {len(rows)} x {reason} (first: {first})")
    return NoExamplesError("\n".join(lines), max(row.tokens for row in dropped))
