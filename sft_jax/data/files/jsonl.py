"""JSONL: one JSON object on each line, in UTF-8; read line by line."""

import functools
from collections.abc import Iterator
from typing import BinaryIO

from sft_jax.data.files.rows import Row, without_blank_end
from sft_jax.data.formats.values import decode_json
from sft_jax.data.reading import RecordError

TITLE = "JSONL"
BOM = b"\xef\xbb\xbf"
MOST_BYTES = 256 * 2**20  # of a line: more is another container, or a file without ends of lines


def rows(stream: BinaryIO, where: str) -> Iterator[Row]:
    """The lines, decoded.

    Raises:
        RecordError: a line that never ends, or a file that is UTF-16.
    """
    return without_blank_end(_lines(stream, where), where)


def _lines(stream: BinaryIO, where: str) -> Iterator[Row | int]:
    # Only \n ends a line: str.splitlines would also cut at U+2028 and others, which JSON strings may hold.
    for number, line in enumerate(iter(functools.partial(stream.readline, MOST_BYTES), b""), 1):
        if number == 1:
            refuse_utf16(line, where)
            line = line.removeprefix(BOM)
        if len(line) == MOST_BYTES:
            raise RecordError(
                f"{where}:{number}: the line is longer than {MOST_BYTES // 2**20} MiB. Expected one JSON object "
                "on each line; a JSON array is read by --config.data.reading.container=json."
            )
        line = line.strip(b" \t\r\n")
        yield Row(number, _decoded(line, f"{where}:{number}")) if line else number


def _decoded(line: bytes, where: str) -> object:
    try:
        return decode_json(decoded_text(line, where), where, "one JSON object on each line")
    except RecordError as error:
        return error


def decoded_text(content: bytes, where: str) -> str:
    """UTF-8 as text.

    Raises:
        RecordError: it is not UTF-8, or has NUL bytes.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(
            f"{where}: not UTF-8 (byte {error.start + 1}: {error.reason}). Convert the file to UTF-8."
        ) from error
    if "\0" in text:
        raise RecordError(f"{where}: a NUL byte (character {text.index(chr(0)) + 1}). The file is binary or damaged.")
    return text


def refuse_utf16(head: bytes, where: str) -> None:
    """Refuses UTF-16 by its byte order mark.

    Raises:
        RecordError: it is UTF-16.
    """
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise RecordError(f"{where}: the file is UTF-16. Convert it to UTF-8.")
