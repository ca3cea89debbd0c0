"""Records: the rows of a data set, read and parsed, each with an id.

Joins files/ (a path -> rows) and formats/ (a row -> an example). Nothing is guessed here: a row that is not understood
is an error that names the file, the row, what was expected and what to do, or is listed among the dropped rows if the
config says so.
"""

import collections
import contextlib
import copy
import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence

from etils import epath

from sft_jax.data.conversations import Chat, Preference
from sft_jax.data.files import CONTAINERS, DATA_SETS, Row, Source, named_apart, sources_of
from sft_jax.data.formats import FORMATS, TEMPLATED, table
from sft_jax.data.reading import (
    AUTO,
    CHOSEN,
    DEFAULT,
    FLAGS,
    LABELS,
    ON_BAD_ROW,
    PREFERENCES,
    TEXT_ENDS,
    TIES,
    NoFormatError,
    Reading,
    RecordError,
    under_flags_of,
)
from sft_jax.data.row_parser import Record, RowParser, rename_of
from sft_jax.data.suggestions import suggestion, suggestion_for_all

__all__ = [
    "DroppedRow",
    "Reading",
    "Record",
    "RecordError",
    "RecordReader",
    "iter_records",
    "read_prompts",
    "read_records",
]

_READ_BY = {"text_end": ("text", "segments"), "preference": ("preference",)}  # option -> formats that read it
_UNREADABLE = "not a valid row"
CHOICES = {  # the values of the options of `Reading` that have a list of them
    "format": (AUTO, *FORMATS),
    "container": (AUTO, *CONTAINERS, *DATA_SETS),
    "label": LABELS,
    "ties": TIES,
    "preference": PREFERENCES,
    "text_end": tuple(TEXT_ENDS),
    "on_bad_row": ON_BAD_ROW,
}
_MOST_COUNTED = 100_000  # rows that are looked at to say how many are bad
_SAMPLE = 200  # rows on which a suggestion is tried, and that are counted where no file holds them


@dataclasses.dataclass(frozen=True)
class DroppedRow:
    """A row that is not trained on.

    Attributes:
        id: names the row.
        reason: the same for all rows with this fault.
        detail: of this row alone.
        tokens: of an example that is too long, how many it has; else 0.
    """

    id: str
    reason: str
    detail: str = ""
    tokens: int = 0


class RecordReader:
    """Reads the records of a path one by one, in memory that does not grow with their number.

    Iterating reads from the beginning. Afterwards rows == records + len(dropped).

    Attributes:
        rows: rows read.
        records: records among them.
        dropped: the rows that could not be read, if `reading.on_bad_row` is "drop".
    """

    def __init__(
        self, path: str | os.PathLike, reading: Reading = DEFAULT, others: Sequence[tuple[str, epath.Path]] = ()
    ):
        """Finds the files.

        Args:
            path: files, a pattern, a directory saved by `datasets` or a name of the hub; may lie in a bucket.
            reading: how.
            others: `files` of another reader; rows of files that only share a name with them have ids of their own.

        Raises:
            RecordError: there are none, or it cannot be told what they are.
            ValueError: an option of `reading` that has no meaning.
        """
        with under_flags_of(reading):
            check_reading(reading)
            self._path, self._reading = path, reading
            self._sources = named_apart(sources_of(path, reading), others)
        self._start()

    def _start(self) -> None:
        self.rows, self.records, self.dropped = 0, 0, []
        self._at: int | None = None  # number of the source that is being read
        self._found: dict[str, list[str]] = collections.defaultdict(list)  # "JSONL, messages" -> names
        self._formats: set[str] = set()
        self._ids: set[str] = set()

    @property
    def notes(self) -> list[str]:
        """What was read, in a line each: "train.jsonl: JSONL, messages". Complete once all is read."""
        return [f"{_listed(names)}: {what}" for what, names in self._found.items()]

    @property
    def unread_options(self) -> list[str]:
        """The flags that were given and that no format of these rows reads. Complete once all is read."""
        given = {name: getattr(self._reading, name) for name in _READ_BY}
        return [
            f"{self._reading.flags}{name}={value}"
            for name, value in given.items()
            if value != getattr(DEFAULT, name) and self._formats.isdisjoint(_READ_BY[name])
        ]

    @property
    def size(self) -> int:
        """Bytes of all files; 0 where that is not known."""
        sizes = [source.size for source in self._sources]
        return sum(sizes) if all(sizes) else 0

    @property
    def share(self) -> float | None:
        """How much the latest pass has read, from 0 to 1, by the bytes of files; None where nobody knows."""
        if self._at is None:
            return 0.0
        now = self._sources[self._at].share()
        if len(self._sources) == 1 or now is None:
            return now
        before = sum(source.size for source in self._sources[: self._at])
        return (before + now * self._sources[self._at].size) / self.size if self.size else None

    @property
    def files(self) -> list[tuple[str, epath.Path]]:
        """Whose bytes decide what the records are, with the name their rows bear; empty where that cannot be told."""
        pairs = [(source.name, file) for source in self._sources for file in source.files]
        return pairs if all(source.files for source in self._sources) else []

    def __iter__(self) -> Iterator[Record]:
        with under_flags_of(self._reading):
            yield from self._records()

    def _records(self) -> Iterator[Record]:
        self._start()
        for number, source in enumerate(self._sources):
            self._at = number
            yield from self._read(source)
        if not self.records:
            first = f"{self._path}: none of {self.rows} rows can be read. The first: {self.dropped[0].detail}"
            raise RecordError(first + self._suggestion(self._sources[0]))
        if self.rows != self.records + len(self.dropped):
            raise RuntimeError(f"{self.rows} rows became {self.records} records and {len(self.dropped)} dropped rows.")

    def _read(self, source: Source) -> Iterator[Record]:
        begun, parser = self.rows, RowParser(self._reading, source)
        for row in source.rows():
            self.rows += 1
            try:
                record = self._record(parser, source, row)
            except RecordError as error:
                if self._reading.on_bad_row == "error":
                    raise RecordError(f"{error}{self._what_to_do(error, source, row)}") from error
                self.dropped.append(DroppedRow(f"{source.name}:{row.number}", _UNREADABLE, _detail(error, source)))
                continue
            self.records += 1
            yield record
        if self.rows == begun:
            raise RecordError(f"{source.where}: the file is empty. Expected rows of one of: {', '.join(FORMATS)}.")
        form = parser.format or "no row can be read"
        self._formats.add(form)
        chosen = " (chosen answers)" if form == "preference" and self._reading.preference == CHOSEN else ""
        self._found[f"{source.title}, {form}{chosen}"].append(source.name)

    def _what_to_do(self, error: RecordError, source: Source, row: Row) -> str:
        """How the row could be read, and how many are like it and how to leave them out, if others are good."""
        try:
            rows, bad = self._counted()
        except (RecordError, OSError):  # of a whole file: no row can be left out instead
            return ""
        has_no_format = isinstance(error, NoFormatError)
        if bad > rows - bad:
            return self._suggestion(source) if has_no_format else ""
        which = f"{bad:,} of {'the first ' if rows == self._most_counted else ''}{rows:,} rows cannot be read."
        # Where all rows are measured or answered, none is left out.
        may_drop = self._reading.flags.startswith("--config.")
        drop = f" To leave such rows out: {FLAGS}on_bad_row=drop" if may_drop else ""
        return f"{self._suggestion_for(row, source) if has_no_format else ''} {which}{drop}"

    @property
    def _most_counted(self) -> int:
        """Rows that are looked at to say how many are bad: few where they come over the network once more."""
        return _MOST_COUNTED if self.files else _SAMPLE

    def _counted(self) -> tuple[int, int]:
        """(rows, bad ones among them) of at most so many rows."""
        again, rows, bad = copy.copy(self), 0, 0
        again._ids = set()
        for source in self._sources:
            parser = RowParser(self._reading, source)
            for row in itertools.islice(source.rows(), self._most_counted - rows):
                rows += 1
                bad += not again._can_read(parser, source, row)
        return rows, bad

    def _can_read(self, parser: "RowParser", source: Source, row: Row) -> bool:
        try:
            self._record(parser, source, row)
        except RecordError:
            return False
        return True

    def _suggestion(self, source: Source) -> str:
        """How most rows of a source could be read."""
        sample, renamed = self._sample(source)

        def count_read(reading: Reading) -> int:
            again, parser = copy.copy(self), RowParser(reading, source)
            again._ids = set()
            return sum(again._can_read(parser, source, row) for row in sample)

        return suggestion(renamed, self._reading, count_read) if renamed else ""

    def _suggestion_for(self, row: Row, source: Source) -> str:
        """How a row could be read that is of no format, unlike others; empty where the others would lose something."""

        def reads(reading: Reading) -> bool:
            again = copy.copy(self)
            again._ids = set()
            return again._can_read(RowParser(reading, source), source, row)

        _, renamed = self._sample(source)
        return suggestion_for_all(renamed, self._reading, reads) if renamed else ""

    def _sample(self, source: Source) -> tuple[list[Row], list[dict]]:
        """The first rows of a source, and the columns of those that can be renamed; none where there are no flags."""
        if not self._reading.flags:
            return [], []
        try:
            rows = list(itertools.islice(source.rows(), _SAMPLE))
        except (RecordError, OSError):  # a suggestion must not take the place of the error it belongs to
            return [], []
        parser, renamed = RowParser(self._reading, source), []
        for row in rows:
            with contextlib.suppress(RecordError):
                if isinstance(row.content, dict):
                    renamed.append(parser.renamed(row.content, f"{source.where}:{row.number}"))
        return rows, renamed

    def _record(self, parser: "RowParser", source: Source, row: Row) -> Record:
        record = parser.record(row.content, row.number)
        self._check_id(record, f"{source.where}:{row.number}")
        return record

    def _check_id(self, record: Record, where: str) -> None:
        if not self._reading.id_column:
            return  # numbers of rows do not repeat
        if record.id in self._ids:
            raise RecordError(f"{where}: the id {record.id!r} stands in an earlier row too. Expected ids of their own.")
        self._ids.add(record.id)


def _detail(error: RecordError, source: Source) -> str:
    """What is wrong with a row, under the name of its file: details are kept with the rows, wherever the file moves."""
    text = str(error)
    return source.name + text.removeprefix(source.where) if text.startswith(f"{source.where}:") else text


def iter_records(path: str | os.PathLike, reading: Reading = DEFAULT) -> Iterator[Record]:
    """Reads records one by one; see `RecordReader`, which also knows what was dropped.

    Raises:
        RecordError: see `read_records`.
    """
    if reading.on_bad_row != "error":
        raise ValueError("rows that are dropped would be lost here; iterate over RecordReader, and look at .dropped")
    return iter(RecordReader(path, reading))


def read_records(path: str | os.PathLike, reading: Reading = DEFAULT) -> list[Record]:
    """Reads all records of a path into a list.

    Args:
        path: files, a pattern, a directory saved by `datasets` or a name of the hub; may lie in a bucket.
        reading: how.

    Raises:
        RecordError: nothing there, an empty file, or a row that is not a record.
    """
    return list(iter_records(path, reading))


def read_prompts(path: str | os.PathLike, reading: Reading = DEFAULT) -> list[Record]:
    """Like `read_records`, for rows to be answered: an answer may be missing, and a final one is left out.

    Raises:
        RecordError: as `read_records`, or nothing is left of a conversation.
    """
    prompts = []
    for record in iter_records(path, dataclasses.replace(reading, prompts_only=True)):
        example = record.example
        turns = example.prompt if isinstance(example, Preference) else record.conversation
        while turns and turns[-1].role == "assistant":
            turns = turns[:-1]
        if not turns:
            raise RecordError(f"{path}: row {record.id} holds nothing but an answer; expected a prompt.")
        prompts.append(dataclasses.replace(record, example=Chat(turns, record.example.tools)))
    return prompts


def check_reading(reading: Reading) -> None:
    """Checks options on their own.

    Raises:
        ValueError: names the flag.
    """
    for name, values in CHOICES.items():
        if getattr(reading, name) not in values:
            raise ValueError(
                f"--config.data.reading.{name}={getattr(reading, name)!r} must be one of {', '.join(values)}"
            )
    for name, label in (("ties", "majority"), ("adjudicator", "adjudicated")):
        if getattr(reading, name) != getattr(DEFAULT, name) and reading.label != label:
            raise ValueError(
                f"--config.data.reading.{name} is read by --config.data.reading.label={label}, not by {reading.label}"
            )
    for text in reading.columns:
        rename_of(text)
    for name in ("prompt_template", "answer_template"):
        table.check_template(getattr(reading, name), name)
        if getattr(reading, name) and reading.format not in (AUTO, *TEMPLATED):
            raise ValueError(
                f"--config.data.reading.{name} is not read by --config.data.reading.format={reading.format}"
            )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} files ({names[0]} … {names[-1]})"
