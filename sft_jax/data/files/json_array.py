"""JSON: an array of rows, or an object with one such array; read as a whole into memory."""

from collections.abc import Iterator
from typing import BinaryIO

from sft_jax.data.files.jsonl import BOM, decoded_text, refuse_utf16
from sft_jax.data.files.rows import Row
from sft_jax.data.formats.values import decode_json, kind
from sft_jax.data.reading import RecordError

TITLE = "JSON"

_EXPECTED = "an array of rows, or an object with one such array"


def rows(stream: BinaryIO, where: str) -> Iterator[Row]:
    """The elements of the array.

    Raises:
        RecordError: not valid JSON, or no array of rows.
    """
    content = stream.read().removeprefix(BOM)
    refuse_utf16(content, where)
    if not content.strip():
        return iter(())
    value = decode_json(decoded_text(content, where), where, _EXPECTED)
    return iter([Row(number, element) for number, element in enumerate(_array(value, where), 1)])


def _array(value: object, where: str) -> list:
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise RecordError(f"{where}: expected {_EXPECTED}, got {kind(value)}.")
    arrays = [key for key, found in value.items() if isinstance(found, list) and found and isinstance(found[0], dict)]
    if len(arrays) != 1:
        found = f"arrays of rows under {', '.join(map(repr, arrays))}" if arrays else "an object without one"
        raise RecordError(
            f"{where}: expected {_EXPECTED}, got {found}. One object on each line is read by "
            "--config.data.reading.container=jsonl."
        )
    return value[arrays[0]]
