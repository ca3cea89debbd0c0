"""Records: the examples of a JSONL file, checked line by line.

The first stage of the data layer. Nothing is guessed here: a line that is not understood stops with the file, the line
and what was expected.
"""

import dataclasses
import json
import os

from etils import epath

from sft_jax.data.conversations import ROLES, Chat, Conversation, Example, Message

_FORMS = '{"messages": [...]} or {"prompt": ..., "completion": ...}'
_ROLE_HINTS = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


class RecordError(ValueError):
    """A file or a line of it that is not a record. The message says where, what was expected and what to do."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One example.

    Attributes:
        id: file name and line, counted from 1: "train.jsonl:12".
        example: what is trained on.
        fields: the line as it was read, with all fields (references for scoring and the like).
        weight: of the whole row as a target.
        group: the slice of the data it belongs to; empty for none.
        source: name of the source it came from, in a mixture.
    """

    id: str
    example: Example
    fields: dict
    weight: float = 1.0
    group: str = ""
    source: str = ""

    @property
    def conversation(self) -> Conversation:
        """Its turns.

        Raises:
            RecordError: it is not a conversation.
        """
        if not isinstance(self.example, Chat):
            raise RecordError(f"{self.id}: expected a conversation, this row is {type(self.example).__name__}.")
        return self.example.messages


def read_records(path: str | os.PathLike) -> list[Record]:
    """Reads a JSONL file (UTF-8, one JSON object a line), which may lie in a bucket.

    A line is either {"messages": [{"role", "content"}, ...]} or {"prompt", "completion"}, where each of the two is a
    string (a user's and an assistant's turn) or a list of messages; the two are one conversation, of which every
    assistant turn is trained. Other fields are kept in `Record.fields`. Empty lines at the end are allowed.

    Raises:
        RecordError: no such file, an empty one, not UTF-8, or a line that is not a record.
    """
    return _read_lines(path, answers=True)


def read_prompts(path: str | os.PathLike) -> list[Record]:
    """Like `read_records`, for rows to be answered: a `completion` may be missing, and a final answer is left out.

    Raises:
        RecordError: as `read_records`, or nothing is left of a conversation.
    """
    prompts = []
    for record in _read_lines(path, answers=False):
        turns = record.conversation
        while turns and turns[-1].role == "assistant":
            turns = turns[:-1]
        if not turns:
            raise RecordError(f"{path}: row {record.id} holds nothing but an answer; expected a prompt.")
        prompts.append(dataclasses.replace(record, example=dataclasses.replace(record.example, messages=turns)))
    return prompts


def _read_lines(path: str | os.PathLike, answers: bool) -> list[Record]:
    file = epath.Path(path)
    if not file.is_file():
        raise RecordError(f"{path}: there is no such file. Expected a JSONL file with a {_FORMS} on each line.")
    # Only \n ends a line: str.splitlines would also cut at U+2028 and others, which JSON strings may hold.
    lines = file.read_bytes().rstrip(b" \t\r\n").split(b"\n")
    if lines == [b""]:
        raise RecordError(f"{path}: the file is empty. Expected a {_FORMS} on each line.")
    return [_read_line(line, f"{path}:{n}", f"{file.name}:{n}", answers) for n, line in enumerate(lines, 1)]


def parse_record(fields: object, where: str, record_id: str | None = None, answers: bool = True) -> Record:
    """A record from one decoded JSON object; `where` stands in errors. Without `answers` a prompt may stand alone.

    Raises:
        RecordError: it has neither form, or both, or a message is not one.
    """
    if not isinstance(fields, dict):
        raise RecordError(f"{where}: expected a JSON object, {_FORMS}, got {_kind(fields)}.")
    ignored = sorted({"tools", "functions"} & set(fields))
    if ignored:
        raise RecordError(f'{where}: "{ignored[0]}" would be ignored: tool definitions are not rendered. Remove it.')
    has_messages, has_pair = "messages" in fields, "prompt" in fields or "completion" in fields
    if has_messages and has_pair:
        raise RecordError(f'{where}: has both "messages" and "prompt"/"completion". Keep one of the two forms.')
    if has_messages:
        conversation = _messages(fields["messages"], f'{where}: "messages"')
    elif has_pair:
        for key in ("prompt", "completion") if answers else ("prompt",):
            if key not in fields:
                raise RecordError(f'{where}: "{key}" is missing. Expected {_FORMS}.')
        conversation = _turns(fields["prompt"], "user", f'{where}: "prompt"')
        if "completion" in fields:
            conversation += _turns(fields["completion"], "assistant", f'{where}: "completion"')
    else:
        keys = ", ".join(map(repr, fields)) or "none"
        raise RecordError(f"{where}: expected {_FORMS}, the keys are: {keys}.")
    return Record(record_id or where, Chat(conversation), fields)


def _read_line(line: bytes, where: str, record_id: str, answers: bool) -> Record:
    if not line.strip():
        raise RecordError(f"{where}: the line is empty. Remove it; each line is one example.")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(
            f"{where}: not UTF-8 (byte {error.start + 1} of the line: {error.reason}). Convert the file to UTF-8."
        ) from error
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise RecordError(
            f"{where}: not valid JSON (column {error.colno}: {error.msg}). Expected one JSON object on each line."
        ) from error
    return parse_record(fields, where, record_id, answers)


def _turns(value: object, role: str, where: str) -> Conversation:
    """The turns of a prompt or completion: a string is one turn of `role`."""
    if isinstance(value, str):
        return (Message(role, _checked_text(value, where)),)
    if isinstance(value, list):
        return _messages(value, where)
    raise RecordError(f"{where}: expected a string or a list of messages, got {_kind(value)}.")


def _messages(value: object, where: str) -> Conversation:
    if not isinstance(value, list) or not value:
        got = "an empty list" if value == [] else _kind(value)
        raise RecordError(f"{where}: expected a list of messages, got {got}.")
    return tuple(_message(item, f"{where}[{i}]") for i, item in enumerate(value))


def _message(item: object, where: str) -> Message:
    if not isinstance(item, dict):
        raise RecordError(f'{where}: expected {{"role": ..., "content": ...}}, got {_kind(item)}.')
    for key in ("role", "content"):
        if key not in item:
            hint = ' Rename "from" to "role" and "value" to "content".' if {"from", "value"} <= set(item) else ""
            raise RecordError(f'{where}: "{key}" is missing.{hint}')
    extra = sorted(set(item) - {"role", "content"})
    if extra:
        raise RecordError(
            f'{where}: {", ".join(map(repr, extra))} would be lost: a message has a "role" and a "content" only. '
            "Put it into the content or remove it."
        )
    role, content = item["role"], item["content"]
    if not isinstance(role, str) or role not in ROLES:
        hint = f" Use {_ROLE_HINTS[role]!r}." if isinstance(role, str) and role in _ROLE_HINTS else ""
        raise RecordError(f"{where}: unknown role {role!r}, expected one of {', '.join(ROLES)}.{hint}")
    if not isinstance(content, str):
        raise RecordError(f"{where}: the content must be a string, got {_kind(content)}.")
    return Message(role, _checked_text(content, where))


def _checked_text(text: str, where: str) -> str:
    """The text itself; JSON can spell half a character (a lone surrogate), which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecordError(
            f"{where}: character {error.start + 1} is a lone surrogate, which is not text. Repair the escape."
        ) from error
    return text


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
