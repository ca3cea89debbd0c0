"""Advice for rows whose columns fit no format: flags that would read them, each tried on the rows before it is given.

formats/nearest.py proposes flags by the names of columns; records.py reads rows with them.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from sft_jax.data.formats import FORMATS
from sft_jax.data.formats.nearest import SYSTEM, Nearest, as_table, describes, nearest
from sft_jax.data.reading import Reading, given


def suggestion(rows: Sequence[Mapping], reading: Reading, count_read: Callable[[Reading], int]) -> str:
    """A sentence with the nearest format and its flags; else one that says which formats there are.

    Args:
        rows: some, with the columns renamed as `reading` asks.
        reading: under which few or none of them can be read.
        count_read: how many of the rows can be read under other options.
    """
    columns = _columns(rows, reading)

    def first_that_reads(candidates: Iterable[Nearest]) -> tuple[Nearest, dict] | None:
        for found in candidates:
            options = _options(found, reading)
            if 2 * count_read(dataclasses.replace(reading, **options)) > _complete(rows, found):
                return found, options
        return None

    chosen = first_that_reads(nearest(columns, reading.prompts_only))
    if chosen is None:
        chosen = first_that_reads(as_table(columns))
        example = "" if chosen is None else f" A table reads any columns, for example {_with_unread(*chosen, columns)}"
        return f" Formats are: {', '.join(FORMATS)}; what their rows look like stands in docs/data.md.{example}"
    found, options = chosen
    unread = found.unread(columns)
    said = f" Nearest is {found.format}: {_with_unread(found, options, columns)}"
    whole = None if all(map(describes, unread)) else first_that_reads(as_table(columns))
    if whole is None or not set(whole[0].unread(columns)) < set(unread):
        return said
    return f"{said} or, as a question and its answer, {_with_unread(*whole, columns)}"


def suggestion_for_all(rows: Sequence[Mapping], reading: Reading, reads: Callable[[Reading], bool]) -> str:
    """A sentence with the nearest format that loses no column of any row; empty where there is none.

    For one row among others that can be read: reading it otherwise must not leave out what the others hold.

    Args:
        rows: as for `suggestion`.
        reading: under which most of them can be read, and one cannot.
        reads: whether that row can be read under other options.
    """
    columns = _columns(rows, reading)
    for found in (*nearest(columns, reading.prompts_only), *as_table(columns)):
        options = _options(found, reading)
        if all(map(describes, found.unread(columns))) and reads(dataclasses.replace(reading, **options)):
            return f" Nearest is {found.format}: {given(options)}."
    return ""


def _with_unread(found: Nearest, options: dict, columns: Sequence[str]) -> str:
    """The flags, and the columns that nothing reads under them."""
    unread = ", ".join(map(repr, found.unread(columns)))
    return given(options) + (f" (not read then: {unread})" if unread else "")


def _columns(rows: Sequence[Mapping], reading: Reading) -> list[str]:
    """The columns that have a value in some row, without those that the config gives another use."""
    own = {reading.id_column, reading.weight_column, reading.group_column}
    columns = dict.fromkeys(name for row in rows for name, value in row.items() if value is not None)
    return [column for column in columns if column not in own]


def _options(found: Nearest, reading: Reading) -> dict:
    options = dict(found.options)
    if "columns" in options:
        options["columns"] = (*reading.columns, *options["columns"])
    return options


def _complete(rows: Sequence[Mapping], found: Nearest) -> int:
    """How many rows have every column that is read; a row that lacks its answer says nothing about the format."""
    needed = found.read - SYSTEM
    return sum(all(row.get(column) is not None for column in needed) for row in rows)
