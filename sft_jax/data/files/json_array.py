"""JSON: an array of rows, or an object with such arrays, of which one is read; the whole file is read into memory.

A row is an object with its columns, or an array, whose columns are called 0, 1, ….
"""

from collections.abc import Iterator, Mapping
from typing import BinaryIO

from sft_jax.data.files.jsonl import BOM, decoded_text, refuse_utf16
from sft_jax.data.files.rows import Row
from sft_jax.data.formats.values import decode_json, kind
from sft_jax.data.reading import DEFAULT, Reading, RecordError, leave_split

TITLE = "JSON"

_EXPECTED = "an array of rows, or an object with arrays of rows"


def rows(stream: BinaryIO, where: str, reading: Reading = DEFAULT) -> Iterator[Row]:
    """The elements of the array.

    Args:
        stream: the file.
        where: stands in errors.
        reading: its `split` is the name of the array, where there are several.

    Raises:
        RecordError: not valid JSON, no array of rows, several and none is chosen, or not that one.
    """
    content = stream.read().removeprefix(BOM)
    refuse_utf16(content, where)
    if not content.strip():
        return iter(())
    value = decode_json(decoded_text(content, where), where, _EXPECTED)
    array = _array(value, reading, where, on_one_line=b"\n" not in content.strip())
    return iter([*_rows(array, f"{where}/{reading.split}" if reading.split else where)])  # of a length that is known


def _array(value: object, reading: Reading, where: str, on_one_line: bool) -> list:
    split = reading.split
    if isinstance(value, list):
        if split:
            raise RecordError(f"{where}: is one array, there is no split {split!r}. {leave_split(reading)}")
        return value
    if not isinstance(value, dict):
        raise RecordError(f"{where}: expected {_EXPECTED}, got {kind(value)}.")
    arrays = _arrays(value)
    if split and value.get(split) == []:
        return []
    if split in arrays or (len(arrays) == 1 and not split):
        return value[split or next(iter(arrays))]
    if not arrays:
        hint = " One object on each line is read by --config.data.reading.container=jsonl" if on_one_line else ""
        raise RecordError(f"{where}: expected {_EXPECTED}, got an object without one.{hint}")
    what = f"there is no array {split!r}" if split else "there are several arrays of rows"
    choices = ", ".join(f"{name} ({count:,} rows)" for name, count in arrays.items())
    raise RecordError(f"{where}: {what}; choose one by {reading.split_flag}: {choices}")


def _arrays(value: Mapping[str, object]) -> dict[str, int]:
    """Name and length of each array of rows."""
    return {
        name: len(found)
        for name, found in value.items()
        if isinstance(found, list) and found and isinstance(found[0], dict | list)
    }


def _rows(array: list, where: str) -> Iterator[Row]:
    width = next((len(element) for element in array if isinstance(element, list)), 0)
    for number, element in enumerate(array, 1):
        if not isinstance(element, list):
            yield Row(number, element)
        elif len(element) == width:
            yield Row(number, {str(column): entry for column, entry in enumerate(element)})
        else:
            yield Row(number, RecordError(f"{where}:{number}: {len(element)} entries, the first such row has {width}."))
