"""Parquet, and Arrow (Feather, IPC files and streams): read in batches of rows."""

from collections.abc import Iterator
from typing import BinaryIO

from sft_jax.data.files.rows import Row
from sft_jax.data.reading import RecordError

ROWS_AT_ONCE = 1024

_ARROW_MAGIC = b"ARROW1"


def parquet_rows(stream: BinaryIO, where: str) -> Iterator[Row]:
    """The rows of a Parquet file.

    Raises:
        RecordError: it is not one.
    """
    import pyarrow  # slow to import, and rarely needed
    import pyarrow.parquet

    try:
        yield from numbered(pyarrow.parquet.ParquetFile(stream).iter_batches(ROWS_AT_ONCE))
    except pyarrow.ArrowException as error:
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
        yield from numbered(piece for batch in batches for piece in _slices(batch))
    except pyarrow.ArrowException as error:
        raise _broken(where, "Arrow", error) from error


def numbered(batches: Iterator, labels: dict[str, list[str]] | None = None) -> Iterator[Row]:
    """The rows of Arrow batches, counted from 1; numbers of the columns `labels` become their names."""
    number = 0
    for batch in batches:
        for fields in batch.to_pylist():
            number += 1
            for column, names in (labels or {}).items():
                if fields[column] is not None:
                    fields[column] = names[fields[column]]
            yield Row(number, fields)


def _slices(batch) -> Iterator:
    for start in range(0, batch.num_rows, ROWS_AT_ONCE):
        yield batch.slice(start, ROWS_AT_ONCE)


def _broken(where: str, title: str, error: Exception) -> RecordError:
    return RecordError(f"{where}: not {title}, or cut off ({error}). Fetch the file again.")
