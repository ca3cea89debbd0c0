"""ShareGPT: {"conversations": [{"from", "value"}, ...]}, with optional columns "system" and "tools".

A turn from `function_call` is an assistant's call, its value {"name", "arguments"} as JSON, or a list of them.
"""

from collections.abc import Set

from sft_jax.data.conversations import Chat, Conversation, Message
from sft_jax.data.formats.messages import chat_of, with_system_column
from sft_jax.data.formats.tools import call_of
from sft_jax.data.formats.values import (
    checked_text,
    decode_json,
    kind,
    list_of,
    own_weight,
    refuse_lost,
    without_ignored,
)
from sft_jax.data.reading import Reading, RecordError

FORM = '{"conversations": [{"from": ..., "value": ...}, ...]}'

_TURN = '{"from": ..., "value": ...}'
_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
}
_KEYS = {"from", "value", "weight", "train"}


def detect(columns: Set[str]) -> bool:
    """Whether rows with these columns are of this format."""
    return "conversations" in columns and not {"chosen", "rejected"} & columns


def parse(fields: dict, where: str, reading: Reading) -> Chat:
    """The conversation of a row.

    Raises:
        RecordError: says which turn, and what was expected.
    """
    turns = turns_of(fields.get("conversations"), f'{where}: "conversations"', reading)
    return chat_of(with_system_column(turns, fields, where), fields, where)


def turns_of(value: object, where: str, reading: Reading) -> Conversation:
    """A list of turns, or that list as a JSON string.

    Raises:
        RecordError: not a list of turns.
    """
    items = list_of(value, where, f"turns, {_TURN}")
    return tuple([turn_of(item, f"{where}[{number}]", reading) for number, item in enumerate(items)])


def turn_of(item: object, where: str, reading: Reading) -> Message:
    """One turn.

    Raises:
        RecordError: says what was expected.
    """
    if not isinstance(item, dict):
        raise RecordError(f"{where}: expected {_TURN}, got {kind(item)}.")
    item = without_ignored(item, reading)
    for key in ("from", "value"):
        if key not in item:
            raise RecordError(f'{where}: "{key}" is missing. Expected {_TURN}.{_hint(item)}')
    name = item["from"]
    if not isinstance(name, str) or name not in _ROLES:
        raise RecordError(f"{where}: unknown role {name!r}, expected one of {', '.join(_ROLES)}.")
    text = checked_text(item["value"], f'{where}: "value"')
    message = Message(_ROLES[name], text)
    if name == "function_call":
        message = message._replace(content="", tool_calls=_calls(text, where, reading))
    if len(item) == 2:
        return message
    refuse_lost(item, _KEYS, "turn", where)
    return message._replace(weight=own_weight(item, where))


def _hint(item: dict) -> str:
    if not {"role", "content"} <= item.keys():
        return ""
    return (
        ' "role" and "content" are OpenAI\'s: call the column "messages", '
        "--config.data.reading.columns='(\"messages=conversations\",)'."
    )


def _calls(text: str, where: str, reading: Reading) -> tuple:
    calls = decode_json(text, f'{where}: "value"', '{"name": ..., "arguments": {...}} of a function_call')
    calls = calls if isinstance(calls, list) else [calls]
    return tuple(call_of(call, f'{where}: "value"', reading) for call in calls)
