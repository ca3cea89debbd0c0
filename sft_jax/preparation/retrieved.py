"""Passages of a corpus in the prompts of training and held-out rows: `config.data.retrieval`.

Used by train_examples.py and run_data.py, between cleaning and rendering, and by whoever puts passages into prompts
elsewhere with the same options.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sft_jax.data.conversations import Chat, Conversation, Preference, Segments, TokenExample
from sft_jax.data.records import DroppedRow, Record, RecordError
from sft_jax.options import RetrievalOptions
from sft_jax.retrieval import (
    Index,
    Passage,
    check_templates,
    chunks_of,
    embedder_of,
    index_name,
    open_index,
    query_of,
    read_corpus,
    with_passages,
)
from sft_jax.retrieval.chunks import check_sizes
from sft_jax.retrieval.corpus import FLAG, check_row_template

_AT_ONCE = 64  # records that are searched for together
_FOLDER = "indexes"  # of the cache of examples
_KINDS = {Segments: "a text", TokenExample: "tokens", Preference: "a pair of answers"}


class Retriever:
    """Finds passages for conversations and puts them into these.

    Attributes:
        options: that it was made with.
        report: what became of the files of the corpus.
        name: of the index: a hash of all that the passages of a question depend on.
    """

    def __init__(self, options: RetrievalOptions, cache: Path | None):
        """Reads the corpus; what searches it is made when it is needed.

        Args:
            options: with a corpus.
            cache: directory below which the index is kept; None: it is not.

        Raises:
            RecordError: the corpus cannot be read; see `read_corpus`.
            ValueError: the package that makes vectors is not installed.
        """
        documents, self.report = read_corpus(options.corpus, options.row_template, options.id_column)
        self.options, self._cache = options, cache
        self._chunks = chunks_of(documents, options.chunk_words, options.overlap_words)
        self._embedder = embedder_of(options.method)
        self.name = index_name(self._chunks, options.method, self._embedder)

    @property
    def document_ids(self) -> set[str]:
        """Of the documents that can be found."""
        return {chunk.document_id for chunk in self._chunks}

    @functools.cached_property
    def index(self) -> Index:
        """What searches the corpus."""
        root = self._cache and self._cache / _FOLDER
        return open_index(root, self._chunks, self.options.method, self._embedder)

    def passages(self, conversations: Sequence[Conversation]) -> list[list[Passage]]:
        """The passages for the last question of each conversation, perhaps none.

        Raises:
            ValueError: a conversation without a message of the user.
        """
        return self.index.search([query_of(conversation) for conversation in conversations], self.options.passages)

    def put_into(self, conversation: Conversation, passages: Sequence[Passage]) -> Conversation:
        """The conversation with passages in its last question; as it is where there are none."""
        return with_passages(conversation, passages, self.options.template, self.options.passage_template)

    def __call__(self, records: Iterable[Record | DroppedRow]) -> Iterator[Record | DroppedRow]:
        """The records with passages in their last questions, one after the other; dropped rows as they are.

        Raises:
            RecordError: a record that is no conversation with a message of the user; names it.
        """
        records = iter(records)
        while batch := list(itertools.islice(records, _AT_ONCE)):
            asked = [_conversation(record) for record in batch if isinstance(record, Record)]
            found = iter(self.passages(asked))
            for record in batch:
                yield self._filled(record, next(found)) if isinstance(record, Record) else record

    def _filled(self, record: Record, passages: Sequence[Passage]) -> Record:
        if not passages:
            return record
        chat = dataclasses.replace(record.example, messages=self.put_into(record.conversation, passages))
        return dataclasses.replace(record, example=chat, without_passages=record.example)

    def note(self, found: int, rows: int, kind: str = "") -> str:
        """What was retrieved, in words.

        Args:
            found: rows that have passages.
            rows: all of them.
            kind: of rows, "held-out " for example, for errors.

        Raises:
            ValueError: none has any.
        """
        options = self.options
        if rows and not found:
            raise ValueError(
                f"{FLAG}corpus={options.corpus}: no passage was found for any of {rows:,} {kind}rows, so there would "
                "be none in any prompt. Give the corpus that these questions are about, or leave it empty."
            )
        none = f", none {'is' if rows - found == 1 else 'are'} found for {rows - found:,}" if rows > found else ""
        return (
            f"passages by {options.method}, at most {options.passages} a row, from {options.corpus} "
            f"({self.report.note()}; {len(self._chunks):,} chunks): in {found:,} of {rows:,} rows{none}"
        )

    @property
    def depends_on(self) -> dict[str, Any]:
        """What its prompts depend on, in the types of JSON."""
        options = self.options
        return {
            "index": self.name,
            "passages": options.passages,
            "template": options.template,
            "passage_template": options.passage_template,
        }


def retriever_of(options: RetrievalOptions, cache: Path | None) -> Retriever | None:
    """What puts passages into prompts; None where the config has no corpus.

    Raises:
        ValueError: see `Retriever`.
    """
    return Retriever(options, cache) if options.corpus else None


def problems_in_retrieval(options: RetrievalOptions, flags: str = FLAG) -> list[str]:
    """What is wrong with the options, before anything is read; problems name their flags, which begin with `flags`."""
    problems = []
    checks = (
        lambda: check_templates(options.template, options.passage_template, flags),
        lambda: check_row_template(options.row_template, flags),
    )
    for check in checks:
        try:
            check()
        except ValueError as error:
            problems.append(str(error))
    try:
        check_sizes(options.chunk_words, options.overlap_words)
    except ValueError as error:
        problems.append(f"{flags}overlap_words={options.overlap_words}: {error}")
    return problems


def _conversation(record: Record) -> Conversation:
    """The turns of a record.

    Raises:
        RecordError: it is no conversation with a message of the user.
    """
    is_chat = isinstance(record.example, Chat)
    if is_chat and any(message.role == "user" for message in record.conversation):
        return record.conversation
    what = "has no message of the user" if is_chat else f"is {_KINDS[type(record.example)]}"
    raise RecordError(
        f"{record.id}: {FLAG}corpus puts passages into the last message of the user, and this row {what}. Leave such "
        "rows out, or leave the corpus empty."
    )
