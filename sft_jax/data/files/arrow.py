"""Parquet, and Arrow (Feather, IPC files and streams): read in batches of rows."""

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, BinaryIO

from sft_jax.data.files.rows import Row, SizedRows
from sft_jax.data.reading import RecordError

ROWS_AT_ONCE = 1024
_BUFFER = 2**20  # bytes of a column of a Parquet file that are read at once

_ARROW_MAGIC = b"ARROW1"
_NO_LABEL = -1  # what the `datasets` library has for a class that is not known
_FREE_OBJECTS = ("arguments", "properties")  # of calls, and of the definitions of tools


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

    All objects of an Arrow column have the same keys, and keys that a row did not have are null: a call's arguments
    would gain the names of other calls' arguments. Such rows are errors.

    Args:
        batches: record batches or tables of one schema.
        where: stands in errors.
        labels: of columns of numbers, the names that take their place.

    Raises:
        RecordError: columns of equal names.
    """
    number, merged = 0, None
    for batch in batches:
        batch.validate(full=True)  # Arrow trusts its files: one that is damaged would crash the process
        if merged is None:
            _check_names(batch.schema, where)
            merged = [field.name for field in batch.schema if _has_free_objects(field.type)]
        for fields in batch.to_pylist():
            number += 1
            problem = next((e for c in merged if (e := _merge_error(fields[c], c, where, number))), None)
            for column, names in labels.items():
                problem = problem or _named(fields, column, names, f"{where}:{number}")
            yield Row(number, problem or fields)


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
    number = fields[column]
    if number is None:
        return None
    if number != _NO_LABEL and not 0 <= number < len(names):
        return RecordError(f"{where}: {column!r} is {number}, the data set has names for 0 to {len(names) - 1}.")
    fields[column] = None if number == _NO_LABEL else names[number]
    return None


def _has_free_objects(kind: Any) -> bool:
    """Whether objects whose keys differ from row to row, as people write them, are stored as structs in it."""
    import pyarrow

    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        return _has_free_objects(kind.value_type)
    if not pyarrow.types.is_struct(kind):
        return False
    return any(
        (field.name in _FREE_OBJECTS and pyarrow.types.is_struct(field.type)) or _has_free_objects(field.type)
        for field in kind
    )


def _merge_error(value: Any, column: str, where: str, number: int) -> RecordError | None:
    for name in _FREE_OBJECTS:
        if any(map(_has_null, _under(value, name))):
            return RecordError(
                f'{where}:{number}: "{column}" has null inside "{name}", where Arrow puts it for every key that other '
                "rows have; what the row had cannot be told. Store calls and tools as JSON strings."
            )
    return None


def _under(value: Any, name: str) -> Iterator[Any]:
    """The objects under a key, at any depth."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        if key == name and isinstance(child, dict):
            yield child
        else:
            yield from _under(child, name)


def _has_null(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_has_null, value.values() if isinstance(value, dict) else value))
    return value is None


def _slices(batch) -> Iterator:
    for start in range(0, batch.num_rows, ROWS_AT_ONCE):
        yield batch.slice(start, ROWS_AT_ONCE)


def _broken(where: str, title: str, error: Exception) -> RecordError:
    return RecordError(f"{where}: not {title}, or cut off ({error}). Fetch the file again.")
