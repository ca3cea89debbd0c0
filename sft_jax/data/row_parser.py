"""One row as a record: finds its format, renames its columns, and makes an example of them.

Used by records.py, which reads all rows of a path.
"""

import dataclasses
from collections.abc import Set

from sft_jax.data.conversations import Chat, Conversation, Example, Message, Preference
from sft_jax.data.files import Source
from sft_jax.data.formats import ANNOTATED, FORMATS, TEMPLATED, detect_format
from sft_jax.data.formats.media import refuse_media
from sft_jax.data.formats.values import checked_text, kind, weight_of
from sft_jax.data.reading import DEFAULT, NoFormatError, Reading, RecordError


@dataclasses.dataclass(frozen=True)
class Record:
    """One example.

    Attributes:
        id: file name and row ("train.jsonl:12"; of text files the line on which the row begins), or the value of
            `Reading.id_column`.
        example: what is trained on.
        fields: the row as it was read, with all columns (references for scoring and the like), renamed.
        weight: of the whole row as a target.
        group: the slice of the data it belongs to; empty for none.
        source: name of the source it came from, in a mixture.
        without_passages: the example before passages of a corpus were put into its prompt; None where none were.
    """

    id: str
    example: Example
    fields: dict
    weight: float = 1.0
    group: str = ""
    source: str = ""
    without_passages: Example | None = None

    @property
    def said(self) -> Example:
        """What the row itself says: the example without passages of a corpus."""
        return self.example if self.without_passages is None else self.without_passages

    @property
    def conversation(self) -> Conversation:
        """Its turns.

        Raises:
            RecordError: it is not a conversation.
        """
        if not isinstance(self.example, Chat):
            raise RecordError(f"{self.id}: expected a conversation, this row is {type(self.example).__name__}.")
        return self.example.messages


class RowParser:
    """Rows of one source as records; all rows of a source are of one format."""

    def __init__(self, reading: Reading, source: Source):
        self.format = ""
        self._reading, self._source = reading, source
        self._renames = [rename_of(text) for text in reading.columns]
        self._own = {reading.id_column, reading.weight_column, reading.group_column}
        self._formats: dict[tuple[frozenset[str], frozenset[str]], str] = {}  # of columns, and of null ones
        self._first, self._first_columns = 0, frozenset[str]()  # of the row the format was found in

    def record(self, content: object, number: int) -> Record:
        """The record of a row.

        Raises:
            RecordError: it is none.
        """
        where = f"{self._source.where}:{number}"
        if isinstance(content, RecordError):
            raise content
        if not isinstance(content, dict):
            raise RecordError(f"{where}: expected an object with the columns of a row, got {kind(content)}.")
        reading, fields = self._reading, self.renamed(content, where)
        found = self._format(fields, number, where)
        if found not in TEMPLATED:  # a table reads what its templates name
            refuse_media(fields, self._own, where, reading)
        example = FORMATS[found].parse(fields, where, reading)
        if reading.system:
            example = _with_system(example, reading.system, where)
        return Record(
            id=_text_column(fields, reading.id_column, where) or f"{self._source.name}:{number}",
            example=example,
            fields=fields,
            weight=_weight_column(fields, reading.weight_column, where),
            group=_group(fields, reading.group_column, where),
        )

    def renamed(self, fields: dict, where: str) -> dict:
        """The columns of a row under their new names.

        Raises:
            RecordError: there is no column of the old name, or one of the new.
        """
        for new, old in self._renames:
            fields = _renamed(fields, new, old, where)
        return fields

    def _format(self, fields: dict, number: int, where: str) -> str:
        columns = frozenset([name for name, value in fields.items() if value is not None])
        null = frozenset(fields) - columns - self._own
        name = self._formats.get((columns, null))
        if name is None:
            try:
                name = detect_format(columns - self._own, where, self._reading, null, self._source.empty)
            except NoFormatError as error:
                raise NoFormatError(self._without(columns, where) or str(error)) from error
            self._formats[columns, null] = name
            if self._reading.label != DEFAULT.label and name not in ANNOTATED:
                raise RecordError(
                    f"{where}: --config.data.reading.label={self._reading.label} is for {' and '.join(ANNOTATED)}, "
                    f"this row is {name}. Leave it at {DEFAULT.label}."
                )
        if name != self.format:
            if self.format:
                raise RecordError(
                    f"{where}: this row is {name}, row {self._first} is {self.format}. All rows of a file are of one "
                    "format: split the file."
                )
            self.format, self._first, self._first_columns = name, number, columns
        return name

    def _without(self, columns: Set[str], where: str) -> str:
        """Which columns of the format of the rows before it a row lacks; empty where that is not what is wrong."""
        known, had = FORMATS.get(self.format), self._first_columns
        lacking = sorted(name for name in had - columns if not known.detect(had - {name})) if known else []
        if not lacking or not known.detect(columns | set(lacking)):
            return ""
        names = " and ".join(map(repr, lacking))
        verb = "is" if len(lacking) == 1 else "are"
        empty = "null or missing" if self._source.empty == "null" else self._source.empty
        return f"{where}: {names} {verb} {empty}; row {self._first} is {self.format}. Expected {known.FORM}."


def rename_of(text: str) -> tuple[str, str]:
    """(new, old) of an entry of `reading.columns`, "new=old".

    Raises:
        ValueError: it is of another form.
    """
    new, equals, old = text.partition("=")
    if not new or not equals:
        raise ValueError(f'--config.data.reading.columns: {text!r} is no rename; expected "new=old"')
    return new, old


def _renamed(fields: dict, new: str, old: str, where: str) -> dict:
    """The fields with `old`, which may lead into objects, called `new`."""
    if new in fields and fields[new] is not None:
        raise RecordError(f"{where}: has a column {new!r} already; {old!r} cannot be renamed to it.")
    if old in fields:
        return {new if name == old else name: value for name, value in fields.items() if name != new}
    value: object = fields
    for part in old.split("."):
        if not isinstance(value, dict) or part not in value:
            columns = ", ".join(map(repr, fields)) or "none"
            raise RecordError(f"{where}: there is no column {old!r} to be renamed {new!r}; the columns are: {columns}.")
        value = value[part]
    return fields | {new: value}


def _text_column(fields: dict, column: str, where: str) -> str:
    if not column:
        return ""
    value = fields.get(column)
    if not isinstance(value, str | int) or value == "":
        raise RecordError(f"{where}: the column {column!r} must be text or a whole number, got {kind(value)}.")
    return checked_text(str(value).lower() if isinstance(value, bool) else str(value), where)


def _group(fields: dict, column: str, where: str) -> str:
    """The slice of a row; empty where its column is null."""
    return "" if column in fields and fields[column] is None else _text_column(fields, column, where)


def _weight_column(fields: dict, column: str, where: str) -> float:
    if not column:
        return 1.0
    value = fields.get(column)
    if isinstance(value, str):  # a cell of a CSV file
        try:
            value = float(value)
        except ValueError:
            raise RecordError(f"{where}: the weight {value!r} in column {column!r} is not a number.") from None
    return weight_of(value, f'{where}: "{column}"')


def _with_system(example: Example, system: str, where: str) -> Example:
    """The example with a system message before it, if it has none."""
    before = (Message("system", system),)
    if isinstance(example, Chat):
        has = example.messages[0].role == "system"
        return example if has else dataclasses.replace(example, messages=before + example.messages)
    if isinstance(example, Preference):
        has = example.prompt[0].role == "system"
        return example if has else dataclasses.replace(example, prompt=before + example.prompt)
    got = type(example).__name__
    raise RecordError(f"{where}: --config.data.reading.system is for conversations, this row is {got}. Leave it out.")
