"""Record formats: one file each, from the fields of a row to an example.

The step between files/ (paths -> rows) and rendering. A format is a module with `FORM` (what a row looks like, for
errors), `detect(columns)` and `parse(fields, where, reading)`, and a line in FORMATS.
"""

from collections.abc import Set
from typing import Protocol

from sft_jax.data.conversations import Example
from sft_jax.data.formats import (
    alpaca,
    argilla,
    label_studio,
    labelled,
    messages,
    preference,
    prompt_completion,
    segments,
    sharegpt,
    table,
    text,
    tokens,
)
from sft_jax.data.formats.annotations import label_text
from sft_jax.data.formats.nearest import nearest
from sft_jax.data.reading import AUTO, NoFormatError, Reading, RecordError


class Format(Protocol):
    """What a module of this package has."""

    FORM: str

    def detect(self, columns: Set[str], /) -> bool:
        """Whether rows with these columns (those that are not null) are of this format."""

    def parse(self, fields: dict, where: str, reading: Reading, /) -> Example:
        """The example of a row; raises RecordError, which begins with `where`."""


FORMATS: dict[str, Format] = {
    "messages": messages,
    "prompt_completion": prompt_completion,
    "labelled": labelled,
    "alpaca": alpaca,
    "sharegpt": sharegpt,
    "preference": preference,
    "text": text,
    "segments": segments,
    "tokens": tokens,
    "table": table,
    "label_studio": label_studio,
    "argilla": argilla,
}
ANNOTATED = {"label_studio": label_studio, "argilla": argilla}  # of several people; read with the templates of a table
TEMPLATED = ("table", *ANNOTATED)  # formats that need the templates

_ANSWERS = {"completion", "output"}  # columns that rows to be answered may lack


def detect_format(
    columns: Set[str], where: str, reading: Reading, null: Set[str] = frozenset(), empty: str = "null"
) -> str:
    """Name of the format of a row.

    A column that is null is a column all the same: what would be of another format with it is not of one without it.

    Args:
        columns: those of the row that are not null, without the columns that the config gives another use.
        where: stands in errors.
        reading: may force a format, by name or by giving templates.
        null: columns that the row has, and that are null in it.
        empty: what a value that is null is called in such a file.

    Raises:
        NoFormatError: no format fits.
        RecordError: several do.
    """
    if reading.format != AUTO:
        return reading.format
    if labelled.COLUMN in reading.ignore:
        columns, null = columns - {labelled.COLUMN}, null - {labelled.COLUMN}
    if reading.prompt_template:
        return next((name for name, known in ANNOTATED.items() if known.detect(columns)), "table")
    fitting = _fitting(columns, null)
    if not fitting and reading.prompts_only:
        fitting = _fitting(columns | _ANSWERS, null)
    if len(fitting) == 1:
        return fitting[0]
    keys = ", ".join(map(repr, sorted(columns))) or "none"
    if fitting:
        force = " or ".join(f"--config.data.reading.format={name}" for name in fitting)
        raise RecordError(f"{where}: the columns fit {' and '.join(fitting)}: {keys}. Force one: {force}")
    if _fitting(columns):  # but not with the null ones
        keys = ", ".join(f"{name!r} ({empty})" if name in null else repr(name) for name in sorted(columns | null))
    why = _null(columns, null, empty) or f"no format fits the columns: {keys}.{_without_answer(columns)}"
    raise NoFormatError(f"{where}: {why}")


def annotations_of(fields: dict) -> dict[str, dict[str, str]]:
    """What each annotator says, for measures of agreement: question -> annotator -> answer (JSON, if it is not text).

    Args:
        fields: `Record.fields`. Of a row that is not from an annotation tool nothing comes.
    """
    columns = {name for name, value in fields.items() if value is not None}
    found: dict[str, dict[str, str]] = {}
    for known in ANNOTATED.values():
        for annotation in known.annotations(fields, "the row") if known.detect(columns) else ():
            for question, answer in annotation.answers.items():
                found.setdefault(question, {})[annotation.annotator] = label_text(answer)
    return found


def _fitting(columns: Set[str], null: Set[str] = frozenset()) -> list[str]:
    """Formats that the columns fit, those that are null left out and not."""
    return [name for name, known in FORMATS.items() if known.detect(columns) and known.detect(columns | null)]


def _null(columns: Set[str], null: Set[str], empty: str) -> str:
    """Which columns would make the row one of a format, if they were not null."""
    for name in _fitting(columns | null) if null else ():
        known = FORMATS[name]
        needed = sorted(column for column in null if not known.detect((columns | null) - {column}))
        if needed:
            which = f"{' and '.join(f'{column!r}' for column in needed)} {'is' if len(needed) == 1 else 'are'} {empty}"
            return f"{which}. Expected {known.FORM}."
    return ""


def _without_answer(columns: Set[str]) -> str:
    for name in () if any(nearest(sorted(columns))) else _fitting(columns | _ANSWERS):
        return f" They are those of {name} without its answer: {FORMATS[name].FORM}."
    return ""
