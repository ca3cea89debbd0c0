"""Steps that repair text: whitespace, Unicode form, control characters, mojibake."""

import dataclasses
import re
import unicodedata

from sft_jax.data.cleaning.contents import edit_texts
from sft_jax.data.cleaning.steps import Change, Outcome
from sft_jax.data.conversations import Segments
from sft_jax.data.records import Record
from sft_jax.data.texts import NOT_TEXT, repair_mojibake

_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_LINE_ENDS = re.compile(r"[ \t]+(?=\n|$)")
_BLANK_LINES = re.compile(r"\n{3,}")


def strip_whitespace(record: Record) -> Outcome:
    """Removes whitespace at both ends of every message; of segments, which follow on one another, at the outer ends."""
    if not isinstance(record.example, Segments):
        return edit_texts(record, str.strip, "whitespace at the ends removed")
    parts = list(record.example.parts)
    parts[0] = parts[0]._replace(text=parts[0].text.lstrip())
    parts[-1] = parts[-1]._replace(text=parts[-1].text.rstrip())
    example = dataclasses.replace(record.example, parts=tuple(parts))
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
    return edit_texts(record, lambda text: NOT_TEXT.sub("", text), "control characters removed")


def fix_encoding(record: Record) -> Outcome:
    """Repairs UTF-8 that was read as Windows-1252 or Latin-1 ("cafÃ©"), where the whole text proves it."""
    return edit_texts(record, repair_mojibake, "mojibake repaired")
