"""Tables: any columns, made a question and an answer by templates from the config (classification, extraction).

In a template `{column}` is the value of a column, `{column|none}` the same with a text to take where it is missing, and
`{{`, `}}` are braces. Text is put in as it is, everything else as JSON.
"""

import functools
import re
from collections.abc import Set

from sft_jax.data.conversations import Chat, Message
from sft_jax.data.formats.media import refuse_media
from sft_jax.data.formats.values import checked_text, json_text
from sft_jax.data.reading import Reading, RecordError

FORM = "any columns, with --config.data.reading.prompt_template and answer_template"

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}|]+)(?:\|([^{}]*))?\}|[{}]")


def detect(columns: Set[str]) -> bool:
    """Never by itself: rows are a table where the config has a template for them."""
    return False


def parse(fields: dict, where: str, reading: Reading) -> Chat:
    """The question and the answer of a row.

    Raises:
        RecordError: a template is missing, or names a column that the row does not have.
    """
    if not reading.prompt_template:
        raise RecordError(f"{where}: a table needs --config.data.reading.prompt_template, {_example(fields)}.")
    refuse_media(fields, _columns_read(reading), where, reading)
    turns = [Message("user", filled(reading.prompt_template, "prompt_template", fields, where))]
    if not reading.prompts_only:
        if not reading.answer_template:
            raise RecordError(f"{where}: a table needs --config.data.reading.answer_template, {_example(fields)}.")
        turns.append(Message("assistant", filled(reading.answer_template, "answer_template", fields, where)))
    return Chat(tuple(turns))


def check_template(template: str, option: str) -> None:
    """Checks a template on its own.

    Raises:
        ValueError: it has a brace that belongs to no column.
    """
    _pieces(template, option)


def filled(template: str, option: str, fields: dict, where: str) -> str:
    """A template with the columns of a row put in.

    Raises:
        RecordError: the row lacks a column.
    """
    text = ""
    for literal, column, default in _pieces(template, option):
        text += literal
        if not column:
            continue
        value = fields.get(column)
        if value is not None:
            here = f'{where}: "{column}"'
            text += checked_text(value, here) if isinstance(value, str) else json_text(value, here)
        elif default is not None:
            text += default
        else:
            present = ", ".join(repr(name) for name, found in fields.items() if found is not None) or "none"
            raise RecordError(
                f"{where}: the row has no {column!r}, which --config.data.reading.{option} names; it has {present}. "
                f"{{{column}|...}} says what stands there instead."
            )
    return text


def _columns_read(reading: Reading) -> set[str]:
    """The columns that the options of a table name."""
    pieces = (
        *_pieces(reading.prompt_template, "prompt_template"),
        *_pieces(reading.answer_template, "answer_template"),
    )
    return {column for _, column, _ in pieces} | {reading.id_column, reading.weight_column, reading.group_column}


@functools.lru_cache(maxsize=64)
def _pieces(template: str, option: str) -> tuple[tuple[str, str, str | None], ...]:
    """(text, column that follows it or empty, what stands there without one)."""
    pieces, literal, end = [], "", 0
    for found in _PIECE.finditer(template):
        literal += template[end : found.start()]
        end = found.end()
        if found[0] in ("{{", "}}"):
            literal += found[0][0]
        elif found[1] is None:
            raise ValueError(
                f"--config.data.reading.{option}={template!r}: a single {found[0]!r} at character "
                f"{found.start() + 1}. Write {found[0] * 2} for a brace, {{column}} for a column."
            )
        else:
            pieces.append((literal, found[1], found[2]))
            literal = ""
    return (*pieces, (literal + template[end:], "", None))


def _example(fields: dict) -> str:
    first = next(iter(fields), "column")
    return f"for example '{{{first}}}'; the columns are: {', '.join(map(repr, fields)) or 'none'}"
