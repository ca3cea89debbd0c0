"""Rows as containers give them: numbered, and either fields or the reason why there are none."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

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
    """

    name: str
    where: str
    title: str
    rows: Callable[[], Iterator[Row]]
    files: tuple[epath.Path, ...] = ()


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
