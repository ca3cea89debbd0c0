"""From a stream of records of any length to a store of examples, in constant memory.

Joins tokenizing, workers.py and the example store: records are read a chunk at a time, and the examples of a chunk are
written before the next one is.
"""

import collections
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator

from sft_jax.data.conversations import Chat, Example, Preference, Segments
from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.data.tokenized import DroppedRow, Tokenized
from sft_jax.data.tokenized.example_store import ExampleStoreWriter, ExampleTally
from sft_jax.data.tokenizing import RECORDS_PER_CALL, nothing_left
from sft_jax.data.tokenizing.workers import Chunk, tokenized_chunks
from sft_jax.data.views import TEMPLATE_SAMPLE, PromptTemplate, View, view_of

_CHUNK_CHARACTERS = 500_000  # of long documents few make a chunk


@dataclasses.dataclass(frozen=True)
class Work:
    """What tokenizing has done, or has done so far.

    Attributes:
        records: done.
        tokens: of the examples they became.
        seconds: since the first record was read.
        workers: processes that help, beside this one; 0 before they were started.
        share: of all that is to be read, from 0 to 1; None where the total is not known.
    """

    records: int
    tokens: int
    seconds: float
    workers: int
    share: float | None

    def speed(self) -> str:
        """In words: "9,800 records/s, 231,000 tokens/s"; with a bar and an ETA they fit into 80 characters."""
        records, tokens = (count / max(self.seconds, 1e-9) for count in (self.records, self.tokens))
        return f"{records:,.0f} records/s, {tokens:,.0f} tokens/s"


@dataclasses.dataclass(frozen=True)
class Turns:
    """How several processes take turns: each reads all chunks and tokenizes every `count`-th, and all get all examples.

    Attributes:
        number: of this process, which takes this chunk first.
        count: of the processes.
        of_all: from the examples of this process's chunks to those of all chunks, in their order.
    """

    number: int = 0
    count: int = 1
    of_all: Callable[[Iterator[Tokenized]], Iterator[Tokenized]] = iter


def write_examples(
    writer: ExampleStoreWriter | ExampleTally,
    records: Iterable[Record | DroppedRow],
    renderer: ConversationRenderer,
    max_example_tokens: int,
    workers: int = 0,
    progress: Callable[[Work], None] | None = None,
    share: Callable[[], float | None] = lambda: None,
    turns: Turns = Turns(),
) -> Work:
    """Tokenizes records and writes their examples.

    Args:
        writer: of the store; where another process writes it, what counts its examples.
        records: taken one after the other; rows that cleaning dropped are among them.
        renderer: the chat template and tokenizer of the model.
        max_example_tokens: the longest an example may be; the renderer's masking says what becomes of longer ones.
        workers: processes that help where it takes long.
        progress: called now and then, from the time on at which tokenizing begins.
        share: how much of all there is to read has been read, from 0 to 1.
        turns: of the processes that tokenize the same records.

    Returns:
        What was done.

    Raises:
        NoExamplesError: there are no records, or all were dropped.
        ValueError: see `tokenize_chunk`.
        RuntimeError: see `tokenize_chunk`, or the records read are not those kept and dropped.
    """
    reading = _Reading(records, share)
    few_dropped: list[DroppedRow] = []  # shown where all are
    helping: list[int] = []
    template, chunks = _with_template(reading.chunks(), renderer)

    def work(share: float | None) -> Work:
        return Work(writer.counts.records, writer.tokens, reading.seconds, sum(helping), share)

    report = progress or (lambda work: None)
    report(work(0.0 if share() is not None else None))
    own = itertools.islice(chunks, turns.number, None, turns.count)
    parts = tokenized_chunks(own, renderer, max_example_tokens, workers, template=template, on_start=helping.append)
    for part in turns.of_all(parts):
        writer.append(part)
        if not writer.counts.examples:
            few_dropped += part.dropped
        report(work(reading.next_share()))
    writer.check(reading.records)
    if not writer.counts.examples:
        raise nothing_left(reading.records, few_dropped)
    return work(share())


class _Reading:
    """Records on their way into chunks: how many, since when, and how much was read for each chunk."""

    def __init__(self, records: Iterable[Record | DroppedRow], share: Callable[[], float | None]):
        self._read, self._share = records, share
        self._shares: collections.deque[float | None] = collections.deque()  # of chunks that are on their way
        self.records, self._started = 0, time.monotonic()

    def chunks(self) -> Iterator[Chunk]:
        for chunk in chunked(self._counted()):
            self._shares.append(self._share())
            yield chunk

    def next_share(self) -> float | None:
        """How much had been read with the next chunk, in their order; of one that is not read yet, so far."""
        return self._shares.popleft() if self._shares else self._share()

    def _counted(self) -> Iterator[Record | DroppedRow]:
        for record in self._read:
            if not self.records:
                self._started = time.monotonic()  # steps of cleaning may have looked at all records before
            self.records += 1
            yield record

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started


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
        if len(chunk) == RECORDS_PER_CALL or characters >= _CHUNK_CHARACTERS:
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
