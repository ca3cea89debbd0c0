"""Record formats: one file each, from the fields of a row to an example.

Between files/ (paths -> rows) and rendering. A format is a module with `FORM` (what a row looks like, for errors),
`detect(columns)` and `parse(fields, where, reading)`, and a line in FORMATS.
"""

from collections.abc import Set
from typing import Protocol

from sft_jax.data.conversations import Example
from sft_jax.data.formats import (
    alpaca,
    argilla,
    label_studio,
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
from sft_jax.data.reading import AUTO, Reading, RecordError


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
_RENAMES = {  # what other data sets call it
    ("question", "answer"): ("prompt", "completion"),
    ("prompt", "response"): ("prompt", "completion"),
    ("question", "response"): ("prompt", "completion"),
    ("query", "response"): ("prompt", "completion"),
    ("input", "output"): ("prompt", "completion"),
    ("instruction", "response"): ("instruction", "output"),
    ("conversation",): ("messages",),
    ("dialog",): ("messages",),
}


def detect_format(columns: Set[str], where: str, reading: Reading) -> str:
    """Name of the format of a row.

    Args:
        columns: those of the row that are not null, without the columns that the config gives another use.
        where: stands in errors.
        reading: may force a format, by name or by giving templates.

    Raises:
        RecordError: no format fits, or several do.
    """
    if reading.format != AUTO:
        return reading.format
    if reading.prompt_template:
        return next((name for name, known in ANNOTATED.items() if known.detect(columns)), "table")
    fitting = _fitting(columns)
    if not fitting and reading.prompts_only:
        fitting = _fitting(columns | _ANSWERS)
    if len(fitting) == 1:
        return fitting[0]
    keys = ", ".join(map(repr, sorted(columns))) or "none"
    if fitting:
        raise RecordError(
            f"{where}: the columns fit {' and '.join(fitting)}: {keys}. Force one: "
            f"--config.data.reading.format={fitting[0]}."
        )
    raise RecordError(f"{where}: no format fits the columns: {keys}.{_hint(columns)} Known are:\n{_known()}")


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


def _fitting(columns: Set[str]) -> list[str]:
    return [name for name, known in FORMATS.items() if known.detect(columns)]


def _hint(columns: Set[str]) -> str:
    if "text" in columns:
        return (
            ' --config.data.reading.format=text trains every token of "text" and nothing else; with '
            "--config.data.reading.prompt_template='{text}' and answer_template the row is a question and its answer."
        )
    for name in _fitting(columns | _ANSWERS):
        return f" They are those of {name} without its answer: {FORMATS[name].FORM}."
    for old, new in _RENAMES.items():
        if columns.issuperset(old):
            renames = ",".join(f'"{b}={a}"' for a, b in zip(old, new, strict=True) if a != b)
            return f" Rename them: --config.data.reading.columns='({renames},)'."
    return ""


def _known() -> str:
    return "\n".join(f"  {name}: {known.FORM}" for name, known in FORMATS.items())
