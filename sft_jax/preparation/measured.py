"""Reads what a run measures and does not train on: held-out rows, and prompts of benchmarks."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from etils import epath

from sft_jax.data.cleaning import Context
from sft_jax.data.reading import held_out_reading_of
from sft_jax.data.records import Record, RecordReader
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.data.tokenized import group_dropped
from sft_jax.data.tokenized.cache_key import file_digests
from sft_jax.data.tokenizing import NoExamplesError, tokenize_records
from sft_jax.options import DataOptions
from sft_jax.preparation.benchmarks import files_of_benchmarks, read_benchmarks
from sft_jax.preparation.retrieved import Retriever


@dataclasses.dataclass(frozen=True)
class Measured:
    """Held-out rows and benchmark prompts, as read: training rows may be cleaned of them, and are checked for them.

    Attributes:
        reader: of the held-out rows; None where there are none.
        held_out: their records.
        benchmarks: prompts of benchmarks, by the name of their file.
        digests: of all of their files, taken before they were read; None where rows are streamed and cannot have any.
    """

    reader: RecordReader | None
    held_out: list[Record]
    benchmarks: dict[str, list[Record]]
    digests: list[list[str]] | None

    @property
    def context(self) -> Context:
        """As cleaning steps want it."""
        return Context(self.held_out, [record for records in self.benchmarks.values() for record in records])


def read_measured(options: DataOptions, trained: Sequence[tuple[str, epath.Path]]) -> Measured:
    """Reads both; `trained` are the training files: rows of a held-out file of the same name get ids of their own."""
    reader, files = _held_out_reader(options, trained), files_of_benchmarks(options.benchmarks)
    streamed = reader is not None and not reader.files
    digests = None if streamed else file_digests(files + (reader.files if reader else []))
    return Measured(reader, list(reader or ()), read_benchmarks(options.benchmarks), digests)


def _held_out_reader(options: DataOptions, trained: Sequence[tuple[str, epath.Path]]) -> RecordReader | None:
    if not options.held_out:
        return None
    return RecordReader(options.held_out, held_out_reading_of(options.reading, options.held_out_split), trained)


def held_out_of(
    options: DataOptions,
    renderer: ConversationRenderer,
    measured: Measured,
    retriever: Retriever | None,
) -> dict[str, Any]:
    """The fields of `ReadData` that are about held-out data."""
    reader, records = measured.reader, measured.held_out
    if reader is None:
        return {"held_out_records": [], "held_out": None, "held_out_note": ""}
    notes = reader.notes
    if retriever is not None:
        records = list(retriever(records))
        found = sum(record.without_passages is not None for record in records)
        notes = [*notes, retriever.note(found, len(records), "held-out ")]
    try:
        examples, dropped = tokenize_records(records, renderer, options.sequence_length)
    except NoExamplesError as error:
        raise NoExamplesError(_nothing_left(options, error)) from error
    dropped = [*reader.dropped, *dropped]
    kept, trained = set(examples.ids), int(examples.supervised.sum())
    note = f"Held out: {len(examples)} examples, {trained:,} supervised tokens ({'; '.join(notes)})."
    for reason, group in group_dropped(dropped).items():
        note += f"\n  {len(group)} more dropped, {reason}: {', '.join(row.id for row in group[:5])}"
        note += ", …" if len(group) > 5 else ""
    return {
        "held_out_records": [record for record in records if record.id in kept],
        "held_out": examples,
        "held_out_note": note,
    }


def _nothing_left(options: DataOptions, error: NoExamplesError) -> str:
    return f"{options.held_out}: no held-out row is left to measure. {error}{too_long_advice(options, error)}"


def too_long_advice(options: DataOptions, error: NoExamplesError) -> str:
    """Flags that keep examples that are too long; empty where none is."""
    if not error.longest:
        return ""
    ways = {"truncate_left": "by whole turns, where there are several", "truncate_right": "at the end"}
    flags = [f"--config.data.masking.too_long={way} ({how})" for way, how in ways.items()]
    shorter = [flag for way, flag in zip(ways, flags, strict=True) if way != options.masking.too_long]
    return (
        f"\nExamples are whole under --config.data.sequence_length={error.longest}, if the model has so many "
        f"positions; those longer than {options.sequence_length} are shortened by {' or '.join(shorter)}"
    )
