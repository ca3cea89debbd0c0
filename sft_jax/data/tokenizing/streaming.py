"""From a stream of records of any length to a store of rows, in constant memory.

Joins tokenizing, workers.py and the row store: records are taken as they are needed, a chunk at a time, and what
comes of them is written before the next ones are.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator

from sft_jax.data.conversations import Chat, Example, Preference, Segments
from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.data.tokenized import DroppedRow
from sft_jax.data.tokenized.row_store import RowStoreWriter
from sft_jax.data.tokenizing import ROWS_PER_CALL, NoRowsError, nothing_left
from sft_jax.data.tokenizing.workers import Chunk, tokenized_chunks
from sft_jax.data.views import TEMPLATE_SAMPLE, PromptTemplate, View, view_of

_CHUNK_CHARACTERS = 500_000  # of long documents few make a chunk


def write_rows(
    writer: RowStoreWriter,
    records: Iterable[Record | DroppedRow],
    renderer: ConversationRenderer,
    max_tokens_per_row: int,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Tokenizes records and writes their rows.

    Args:
        writer: of the store.
        records: taken one after the other; rows dropped on the way to here stand among them.
        renderer: the chat template and tokenizer of the model.
        max_tokens_per_row: the longest a row may be; the renderer's masking says what becomes of longer ones.
        workers: processes that help where it takes long.
        progress: called with (records done, 0) now and then; how many there will be is not known.

    Raises:
        NoRowsError: there are no records, or all were dropped.
        ValueError: see `tokenize_chunk`.
        RuntimeError: see `tokenize_chunk`, or rows in are not rows kept and dropped.
    """
    read = 0

    def counted() -> Iterator[Record | DroppedRow]:
        nonlocal read
        for record in records:
            read += 1
            yield record

    few_dropped: list[DroppedRow] = []  # shown where all are
    template, chunks = _with_template(chunked(counted()), renderer)
    for part in tokenized_chunks(chunks, renderer, max_tokens_per_row, workers, template=template):
        writer.append(part)
        if not writer.counts.rows:
            few_dropped += part.dropped
        if progress is not None:
            progress(writer.counts.records, 0)
    writer.check(read)
    if not writer.counts.rows:
        raise NoRowsError(nothing_left(read, few_dropped))


def _with_template(chunks: Iterator[Chunk], renderer: ConversationRenderer) -> tuple[PromptTemplate, Iterator[Chunk]]:
    """What prompts begin and end with, and the chunks, the first of which had to be read to know it."""
    first: list[Chunk] = []
    views: list[View] = []
    while len(views) < TEMPLATE_SAMPLE and (chunk := next(chunks, None)) is not None:
        first.append(chunk)
        views += [view_of(record, renderer.tokenizer) for record in chunk if isinstance(record, Record)]
    return PromptTemplate.of_views(views), itertools.chain(first, chunks)


def chunked(records: Iterable[Record | DroppedRow]) -> Iterator[Chunk]:
    """Records in chunks that are small in memory and enough work for one call."""
    chunk: list[Record | DroppedRow] = []
    characters = 0
    for record in records:
        chunk.append(record)
        characters += _characters(record.example) if isinstance(record, Record) else 0
        if len(chunk) == ROWS_PER_CALL or characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _characters(example: Example) -> int:
    """About how long an example is."""
    if isinstance(example, Chat):
        return sum(len(message.content) for message in example.messages)
    if isinstance(example, Segments):
        return sum(len(part.text) for part in example.parts)
    if isinstance(example, Preference):
        return sum(len(m.content) for turns in (example.prompt, example.chosen, example.rejected) for m in turns)
    return 4 * len(example.tokens)
