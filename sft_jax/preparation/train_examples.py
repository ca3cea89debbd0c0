"""The training examples of a config: from the cache, or streamed from the files through cleaning and tokenization.

`load_data` (run_data.py) uses it. However many records there are, only the first ones are kept in memory, for the
checks at the start of a run.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_jax import audit
from sft_jax.audit.checks import Finding, Place
from sft_jax.data.cleaning import Cleaner, CleaningLog, Context, Sink, cleaning_values
from sft_jax.data.mixed_records import MixedReader
from sft_jax.data.records import DroppedRow, Record, RecordReader
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.data.tokenized import Tokenized
from sft_jax.data.tokenized.cache import cached_examples, cached_json
from sft_jax.data.tokenized.cache_key import (
    NOT_IN_EXAMPLES,
    check_unchanged,
    code_digest,
    examples_key,
    file_digests,
    source_digest,
)
from sft_jax.data.tokenized.example_store import ExampleStoreWriter, ExampleTally
from sft_jax.data.tokenizing.streaming import Turns, write_examples
from sft_jax.data.tokenizing.workers import worker_count
from sft_jax.options import DataOptions, Options
from sft_jax.preparation.mixing import reader_of, readings_of_sources
from sft_jax.preparation.retrieved import Retriever
from sft_jax.preparation.together import check_unchanged_together, digests_together, examples_together, turns
from sft_jax.progress import ProgressBar, silent

ProgressFor = Callable[[str, int | None], ProgressBar]  # of a title, and how many there are, see `ProgressBar`

CHECKED_RECORDS = 20_000  # that checks at the start of a run look at: so many take some 60 MB

# Files of this folder on which examples depend: what is read, what rows are cleaned of, passages, the renderer.
_WIRING = (
    "benchmarks.py",
    "measured.py",
    "mixing.py",
    "retrieved.py",
    "run_data.py",
    "together.py",
    "train_examples.py",
)


class TrainingRecords:
    """The training records of a config, one after the other, as cleaning leaves them, with passages of the corpus.

    Iterating reads from the beginning; rows that are dropped on the way come too, as such.

    Attributes:
        reader: of the files.
        retriever: puts passages into their prompts; None where there is no corpus.
        log: what cleaning did in the latest pass.
        first: the first records of the latest pass.
        found: how many records of the latest pass have passages.
    """

    def __init__(
        self,
        options: DataOptions,
        context: Context,
        keep: int | None = CHECKED_RECORDS,
        on_change: Sink | None = None,
        reader: RecordReader | MixedReader | None = None,
        retriever: Retriever | None = None,
    ):
        """Finds the files.

        Args:
            options: what is read and how it is cleaned.
            context: what cleaning steps compare with.
            keep: how many records stay in memory; None: all.
            on_change: given every record that cleaning drops or changes, as it was.
            reader: of the files, where there is one.
            retriever: puts passages into their prompts; None: there are none.

        Raises:
            RecordError: there is nothing to read.
        """
        self.reader = reader_of(options) if reader is None else reader
        self._cleaner = Cleaner(options.cleaning, context)
        self._keep, self._on_change = keep, on_change
        self.retriever = retriever
        self.log, self.first, self.found = CleaningLog(), [], 0

    def __iter__(self) -> Iterator[Record | DroppedRow]:
        self.log, self.first, self.found = CleaningLog(self._on_change), [], 0
        cleaned = self._cleaner(lambda: self.reader, self.log)
        for record in cleaned if self.retriever is None else self.retriever(cleaned):
            if isinstance(record, Record):
                self.found += record.without_passages is not None
                if self._keep is None or len(self.first) < self._keep:
                    self.first.append(record)
            yield record
        yield from self.reader.dropped

    @property
    def notes(self) -> list[str]:
        """What was read and retrieved, in a line each. Complete once all is read.

        Raises:
            ValueError: there is a corpus, and no record has a passage of it.
        """
        if self.retriever is None:
            return self.reader.notes
        return [*self.reader.notes, self.retriever.note(self.found, self.log.kept)]

    def read_first(self) -> Sequence[Record]:
        """The first records, read again if there was no pass."""
        if not self.first:
            for record in self:
                if len(self.first) == self._keep:
                    break
                del record
        return self.first


def training_examples(
    options: Options,
    records: TrainingRecords,
    renderer: ConversationRenderer,
    show: ProgressFor,
    cache: Path | None,
    key: dict[str, Any],
    shared: bool = False,
) -> tuple[Tokenized, str]:
    """The examples of the records, and in words where they come from.

    Args:
        options: of the run.
        records: the training records; not read if their examples are in the cache.
        renderer: the chat template and tokenizer.
        show: makes a progress callback.
        cache: directory of the cache; None for none.
        key: from `examples_key_of`; not looked at without a cache.
        shared: several processes read the same files, and make the examples together.

    Raises:
        ValueError: a file changed while it was read; see also `write_examples`.
    """

    def write(writer: ExampleStoreWriter | ExampleTally) -> Mapping[str, Any]:
        workers = worker_count(options.loader.tokenize_workers)
        bar = functools.cache(lambda: show("tokenizing", None))  # shown when cleaning has looked at all rows
        report = lambda work: bar().update(work.share, work.speed(), within=True)
        share = lambda: records.reader.share
        longest, own = options.data.sequence_length, turns() if shared else Turns()
        work = write_examples(writer, records, renderer, longest, workers, report, share, own)
        bar().update(work.share, work.speed())
        writer.check(records.reader.rows)
        if cache is not None:  # what was read must be what the entry is named after
            check = check_unchanged_together if shared else check_unchanged
            check(records.reader.files, key["files"])
        made = {"records": work.records, "tokens": work.tokens, "seconds": work.seconds, "workers": work.workers}
        read = {"read": records.notes, "unread_options": records.reader.unread_options}
        return read | {"cleaning": cleaning_values(records.log), "made": made}

    if shared:
        return examples_together(cache, key, write)
    waiting = lambda: show("waiting for a process that tokenizes the same data", 0)
    return cached_examples(cache, key, write, waiting)


def examples_key_of(
    options: DataOptions,
    records: TrainingRecords,
    renderer: ConversationRenderer,
    compared_with: Sequence[Sequence[str]],
    show: ProgressFor = silent,
    shared: bool = False,
) -> dict[str, Any]:
    """What the training examples depend on.

    Args:
        options: what is read and how it becomes tokens.
        records: the training records.
        renderer: the chat template and tokenizer.
        compared_with: digests of the held-out and benchmark files that cleaning steps may look at.
        show: makes a progress callback.
        shared: several processes have the same files, and hash each once.
    """
    bar = functools.cache(lambda: show("hashing files", None))  # shown where there is much to read
    depends_on = {name: value for name, value in dataclasses.asdict(options).items() if name not in NOT_IN_EXAMPLES}
    depends_on["sources"] = readings_of_sources(options)
    depends_on["retrieval"] = records.retriever and records.retriever.depends_on
    digests_of = digests_together if shared else file_digests
    files = digests_of(records.reader.files, lambda share: bar().update(share))
    key = examples_key(files, renderer, depends_on)
    key["compared_with"] = list(map(list, compared_with)) if options.cleaning else []
    return key | {"wiring": wiring_digest()}


def wiring_digest(folder: Path = Path(__file__).parent) -> str:
    """sha256 of the files of `_WIRING`: examples depend on them as on the code of the data layer."""
    return source_digest([folder / name for name in _WIRING], folder)


def training_findings(
    cache: Path | None,
    examples_key: dict[str, Any],
    compared_with: Sequence[Sequence[str]],
    check: Callable[[], list[Finding]],
) -> list[Finding]:
    """What the quick checks find, looked for once for the same examples, held-out rows and benchmarks."""
    code = [code_digest(without=()), code_digest(without=(), root=Path(audit.__file__).parent)]
    key = {"examples": examples_key, "compared_with": compared_with, "code": code}
    found = cached_json(cache, key, lambda: [dataclasses.asdict(finding) for finding in check()])
    return [Finding(**values | {"examples": tuple(Place(*place) for place in values["examples"])}) for values in found]
