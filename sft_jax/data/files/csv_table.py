"""CSV and TSV: a header, then rows of strings; read row by row. Quoted cells may hold lines (RFC 4180).

An empty cell is null: CSV has no other way to leave a value out.
"""

import csv
from collections.abc import Iterator
from typing import BinaryIO

from sft_jax.data.files.jsonl import BOM, decoded_text, refuse_utf16
from sft_jax.data.files.rows import Row, without_blank_end
from sft_jax.data.reading import DEFAULT, Reading, RecordError, given

TITLE = "CSV"

_MOST_CHARACTERS = 2**28  # of a cell; what the csv module allows by default (131,072) is less than a long document
_OTHER_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_INDEX = "; it may be the index that pandas writes, which to_csv(index=False) leaves out"
_FREE = ("id", "index", "row", "number")  # names for a column that has none
CONTAINER_OF = {",": "csv", ";": "csv_semicolon", "\t": "tsv"}


def rows(stream: BinaryIO, where: str, reading: Reading = DEFAULT, separator: str = ",") -> Iterator[Row]:
    """The rows below the header, by column; a row's number is the line on which it begins.

    Args:
        stream: the file.
        where: stands in errors.
        reading: its `columns` may give a name ("id=") to the one column that has none.
        separator: of cells.

    Raises:
        RecordError: no header, one with equal names or with an empty one that is given none, or quotes that never end.
    """
    csv.field_size_limit(_MOST_CHARACTERS)
    lines = _cells(csv.reader(_text_lines(stream, where), delimiter=separator, strict=True), where)
    _, header = next(lines, (1, []))
    if header:
        _check_header(header, where, separator, reading)
    return without_blank_end((_row(begins, cells, header, where) for begins, cells in lines), where)


def _text_lines(stream: BinaryIO, where: str) -> Iterator[str]:
    for number, line in enumerate(stream, 1):
        if number == 1:
            refuse_utf16(line, where)
            line = line.removeprefix(BOM)
        yield decoded_text(line, f"{where}:{number}")


def _cells(reader: Iterator[list[str]], where: str) -> Iterator[tuple[int, list[str]]]:
    """(line on which the row begins, its cells)."""
    begins = 1
    try:
        for cells in reader:
            yield begins, cells
            begins = reader.line_num + 1
    except csv.Error as error:
        raise RecordError(
            f"{where}:{begins}: not valid CSV ({error}). A quote inside a quoted cell is written twice."
        ) from error


def _row(begins: int, cells: list[str], header: list[str], where: str) -> Row | int:
    if not cells:
        return begins
    if len(cells) == len(header):
        return Row(begins, {name: cell or None for name, cell in zip(header, cells, strict=True)})
    expected = f"{where}:{begins}: {len(cells)} cells, the header has {len(header)}"
    return Row(begins, RecordError(f"{expected}. Put a cell with a separator in it into quotes."))


def _check_header(header: list[str], where: str, separator: str, reading: Reading) -> None:
    if len(header) == 1:
        for other, name in _OTHER_SEPARATORS.items():
            if other in header[0] and other != separator:
                raise RecordError(
                    f"{where}:1: the header is one column, {header[0]!r}; the cells seem to be separated by {name}. "
                    f"Force it: --config.data.reading.container={CONTAINER_OF[other]}."
                )
    for name in header:
        if header.count(name) > 1:
            what = f"two columns {name!r}" if name else "several columns without a name"
            raise RecordError(f"{where}:1: the header has {what}. Expected a name of its own for each: {header}.")
    if "" in header and all(rename.partition("=")[2] for rename in reading.columns):
        free = next((name for name in _FREE if name not in header), "name")
        flag = given({"columns": (*reading.columns, f"{free}=")})
        raise RecordError(
            f"{where}:1: the header has a column without a name{'' if header[0] else _INDEX}. Give it one, by {flag}. "
            f"The columns are: {header}."
        )
