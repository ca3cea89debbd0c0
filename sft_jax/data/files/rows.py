"""Rows as containers give them: a number, and either the fields or the error that says why there are none."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from etils import epath

from sft_jax.data.reading import RecordError


class Row(NamedTuple):
    """One row.

    Attributes:
        number: for people: the line of a text file on which the row begins, else its number, counted from 1.
        content: what it decodes to (a dict, if it is a record), or the error that kept it from being decoded.
    """

    number: int
    content: object | RecordError


class SizedRows(Iterator[Row]):
    """Rows of which it is known how many are to come (`operator.length_hint`)."""

    def __init__(self, rows: Iterator[Row], count: int):
        """Wraps an iterator over so many rows."""
        self._rows, self._left = rows, count

    def __next__(self) -> Row:
        row = next(self._rows)
        self._left -= 1
        return row

    def __length_hint__(self) -> int:
        return max(self._left, 0)


class Share:
    """How much of a source the latest pass has read, from 0 to 1; None where nobody knows.

    Of its rows where their number is known, else of the bytes of its file.
    """

    def __init__(self):
        """Nothing is known before the source is opened."""
        self._now: Callable[[], float | None] = lambda: None

    def __call__(self) -> float | None:
        """The share."""
        return self._now()

    def of_bytes(self, stream: BinaryIO, size: int) -> None:
        """Goes by the position in a file of this size."""
        self._now = lambda: stream.tell() / size if size else None

    def of_rows(self, rows: Iterator[Row]) -> Iterator[Row]:
        """The rows; goes by their number if they know it."""
        if count := operator.length_hint(rows):
            self._now = lambda: 1 - operator.length_hint(rows) / count
        known = self._now() is not None
        yield from rows
        self._now = lambda: 1.0 if known else None


@dataclasses.dataclass(frozen=True)
class Source:
    """Rows of one file or data set.

    Attributes:
        name: stands before the number in ids ("train.jsonl"), unique among the sources that are read together.
        where: stands before the number in errors: the whole path.
        title: what it was taken for ("JSONL"), shown to people.
        rows: reads them from the beginning, in memory that does not grow with their number where the container allows
            it; raises RecordError for what is wrong with the whole file.
        files: whose bytes decide what the rows are; empty where none on this machine or in a bucket do.
        share: how much of it the latest pass has read.
        empty: what a value that is null is called in such a file.
    """

    name: str
    where: str
    title: str
    rows: Callable[[], Iterator[Row]]
    files: tuple[epath.Path, ...] = ()
    share: Share = dataclasses.field(default_factory=Share)
    empty: str = "null"

    @functools.cached_property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.stat().length for file in self.files)


def without_blank_end(rows: Iterator[Row | int], where: str) -> Iterator[Row]:
    """Rows, of which an int stands for a blank line of that number: harmless at the end, an error before a row."""
    blank: list[int] = []
    for row in rows:
        if isinstance(row, int):
            blank.append(row)
            continue
        for number in blank:
            yield Row(number, RecordError(f"{where}:{number}: the line is empty. Remove it; each line is one example."))
        blank.clear()
        yield row
