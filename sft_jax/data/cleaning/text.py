"""Steps that repair text: whitespace, Unicode form, control characters, mojibake."""

import dataclasses
import re
import unicodedata

from sft_jax.data.cleaning.contents import edit_texts
from sft_jax.data.cleaning.steps import Change, Outcome
from sft_jax.data.conversations import Segments
from sft_jax.data.records import Record

_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_LINE_ENDS = re.compile(r"[ \t]+(?=\n|$)")
_BLANK_LINES = re.compile(r"\n{3,}")
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
# A character as the byte that Windows-1252 reads it from; bytes it has no character for are read as themselves.
_BYTES = {bytes([byte]).decode("cp1252", "replace"): byte for byte in range(128, 256)}
_BYTES |= {chr(byte): byte for byte in range(256) if chr(byte) not in _BYTES}
_TIMES_BROKEN = 3  # text that was read wrongly, written, and read wrongly again


def strip_whitespace(record: Record) -> Outcome:
    """Removes whitespace at both ends of every message; of segments, which follow on one another, at the outer ends."""
    if not isinstance(record.example, Segments):
        return edit_texts(record, str.strip, "whitespace at the ends removed")
    parts = list(record.example.parts)
    parts[0] = parts[0]._replace(text=parts[0].text.lstrip())
    parts[-1] = parts[-1]._replace(text=parts[-1].text.rstrip())
    example = Segments(tuple(parts))
    if example == record.example:
        return None
    return Change(dataclasses.replace(record, example=example), "whitespace at the ends removed")


def normalize_whitespace(record: Record) -> Outcome:
    """One kind of line break and of space, none at the ends of lines, at most one blank line; indentation stays."""
    return edit_texts(record, _plain_whitespace, "whitespace made plain")


def _plain_whitespace(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _BLANK_LINES.sub("\n\n", _LINE_ENDS.sub("", _SPACES.sub(" ", text)))


def normalize_unicode(record: Record) -> Outcome:
    """Composed characters (Unicode NFC): é as one character, however it was typed."""
    return edit_texts(record, lambda text: unicodedata.normalize("NFC", text), "characters composed (NFC)")


def remove_control_characters(record: Record) -> Outcome:
    """Removes control characters but tab and line breaks, byte order marks and what is no character."""
    return edit_texts(record, lambda text: _NOT_TEXT.sub("", text), "control characters removed")


def fix_encoding(record: Record) -> Outcome:
    """Repairs UTF-8 that was read as Windows-1252 or Latin-1 ("cafÃ©"), where the whole text proves it."""
    return edit_texts(record, repair_mojibake, "mojibake repaired")


def repair_mojibake(text: str) -> str:
    """The text as it was before it was read wrongly; the text itself where that is not proven.

    Proven is: all its characters stand for bytes that together are valid UTF-8, the result holds no control
    character, and no pair stands behind a capital ("MANHÃ…" is Portuguese and an ellipsis).

    "cafÃ©" -> "café", "donâ€™t" -> "don’t", "Ã©tÃ© à Paris" stays: à is right, so the text was not read wrongly.
    """
    read, proven = text, text
    for _ in range(_TIMES_BROKEN):
        read = _decoded(read)
        if read is None:
            break
        if not _NOT_TEXT.search(read):
            proven = read
    return proven


def _decoded(text: str) -> str | None:
    """The text read rightly; None where it cannot have been read wrongly."""
    if text.isascii():
        return None
    try:
        repaired = bytes(_BYTES[character] for character in text).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return None
    at = 0
    for character in repaired:
        width = len(character.encode("utf-8"))
        if width == 2 and at and text[at - 1].isupper():
            return None
        at += width
    return repaired
