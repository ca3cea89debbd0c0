"""Parquet, and Arrow (Feather, IPC files and streams): read in batches of rows."""

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, BinaryIO

from sft_jax.data.files.arrow_values import column_values
from sft_jax.data.files.rows import Row, SizedRows
from sft_jax.data.reading import RecordError

ROWS_AT_ONCE = 1024
_BUFFER = 2**20  # bytes of a column of a Parquet file that are read at once

_ARROW_MAGIC = b"ARROW1"
_NO_LABEL = -1  # what the `datasets` library has for a class that is not known


def parquet_rows(stream: BinaryIO, where: str) -> Iterator[Row]:
    """The rows of a Parquet file.

    Raises:
        RecordError: it is not one.
    """
    import pyarrow  # slow to import, and rarely needed
    import pyarrow.parquet

    try:
        # By default a whole group of rows, often the whole file, is read ahead into memory.
        file = pyarrow.parquet.ParquetFile(stream, buffer_size=_BUFFER, pre_buffer=False)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _broken(where, "Parquet", error) from error
    return SizedRows(_parquet_batches(file, where), file.metadata.num_rows)


def _parquet_batches(file: Any, where: str) -> Iterator[Row]:
    import pyarrow

    try:
        yield from numbered(file.iter_batches(ROWS_AT_ONCE), where)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _broken(where, "Parquet", error) from error


def arrow_rows(stream: BinaryIO, where: str) -> Iterator[Row]:
    """The rows of an Arrow file or stream.

    Raises:
        RecordError: it is neither.
    """
    import pyarrow

    try:
        magic = stream.read(len(_ARROW_MAGIC))
        stream.seek(0)
        if magic == _ARROW_MAGIC:
            file = pyarrow.ipc.open_file(stream)
            batches = (file.get_batch(i) for i in range(file.num_record_batches))
        else:
            batches = pyarrow.ipc.open_stream(stream)
        yield from numbered((piece for batch in batches for piece in _slices(batch)), where)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _broken(where, "Arrow", error) from error


def numbered(
    batches: Iterable, where: str, labels: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> Iterator[Row]:
    """The rows of Arrow batches, counted from 1.

    Args:
        batches: record batches or tables of one schema.
        where: stands in errors.
        labels: of columns of numbers, the names that take their place.

    Raises:
        RecordError: columns of equal names, or of a type that rows cannot hold.
    """
    number, is_checked = 0, False
    for batch in batches:
        batch.validate(full=True)  # Arrow trusts its files: one that is damaged would crash the process
        if not is_checked:
            _check_names(batch.schema, where)
            is_checked = True
        for fields in _rows(batch, where):
            number += 1
            problem = None
            for column, names in labels.items():
                problem = problem or _named(fields, column, names, f"{where}:{number}")
            yield Row(number, problem or fields)


def _rows(batch: Any, where: str) -> Iterator[dict[str, Any]]:
    names = batch.schema.names
    columns = [column_values(batch.column(number), name, where) for number, name in enumerate(names)]
    for number in range(batch.num_rows):
        yield {name: column[number] for name, column in zip(names, columns, strict=True)}


def _check_names(fields: Iterable, where: str) -> None:
    """Checks that no two columns have one name, nor two keys of a column's objects: one of them would be lost."""
    fields = list(fields)
    twice = [name for name, count in collections.Counter(field.name for field in fields).items() if count > 1]
    if twice:
        raise RecordError(f"{where}: has two columns {twice[0]!r}. Expected a name of its own for each; rename one.")
    for field in fields:
        _check_names(map(field.type.field, range(field.type.num_fields)), where)


def _named(fields: dict[str, Any], column: str, names: Sequence[str], where: str) -> RecordError | None:
    """Puts the name of a class in the place of its number; an error for a number that stands for none."""
    try:
        fields[column] = _class_name(fields[column], names)
    except IndexError:
        known = f"the data set has names for 0 to {len(names) - 1}"
        return RecordError(f"{where}: {column!r} is {fields[column]}, {known}.")
    return None


def _class_name(value: Any, names: Sequence[str]) -> Any:
    """The name of a number, or of each in a list; raises IndexError where there is none."""
    if isinstance(value, list):
        return [_class_name(item, names) for item in value]
    if value is None or value == _NO_LABEL:
        return None
    if value < 0:
        raise IndexError
    return names[value]


def _slices(batch) -> Iterator:
    for start in range(0, batch.num_rows, ROWS_AT_ONCE):
        yield batch.slice(start, ROWS_AT_ONCE)


def _broken(where: str, title: str, error: Exception) -> RecordError:
    return RecordError(f"{where}: not {title}, or cut off ({error}). Fetch the file again.")
