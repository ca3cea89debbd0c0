"""OpenAI chat: {"messages": [{"role", "content"}, ...]}, with tools, calls, reasoning, weights and trained ranges.

Checked here is only what no chat template could make sense of. The order of turns is left to the template: a system
message that is not the first, two users in a row or an assistant who begins are right for some models and wrong for
others, and the rendering drops what the model's own template refuses, with its reason.
"""

import itertools
from collections.abc import Set

from sft_jax.data.conversations import ROLES, Chat, Conversation, Message, ToolCall
from sft_jax.data.formats.tools import call_of, calls_of, check_results, definitions_of
from sft_jax.data.formats.values import (
    checked_text,
    flag_of,
    kind,
    list_of,
    number_of,
    own_weight,
    refuse_lost,
    without_ignored,
)
from sft_jax.data.reading import Reading, RecordError

FORM = '{"messages": [{"role": ..., "content": ...}, ...]}'

_MESSAGE = '{"role": ..., "content": ...}'
_ROLE_HINTS = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "function": "tool"}
_REASONING = ("reasoning_content", "reasoning", "thinking")
_KEYS = {"role", "content", "weight", "train", "train_detail", "tool_calls", "function_call", "name", "tool_call_id"}
_KEYS |= set(_REASONING)
_OF_RESULTS = {"name", "tool_call_id"}
_PART_TEXTS = ("text", "content", "value")

Ranges = tuple[tuple[int, int, float], ...]


def detect(columns: Set[str]) -> bool:
    """Whether rows with these columns are of this format."""
    return "messages" in columns


def parse(fields: dict, where: str, reading: Reading) -> Chat:
    """The conversation of a row.

    Raises:
        RecordError: says which message, and what was expected.
    """
    where = f'{where}: "messages"'
    turns = with_system_column(conversation_of(fields.get("messages"), where, reading), fields, where)
    return chat_of(turns, fields, where)


def with_system_column(turns: Conversation, fields: dict, where: str) -> Conversation:
    """The turns after the system message of a column of that name.

    Raises:
        RecordError: the conversation begins with another one.
    """
    if fields.get("system") in (None, ""):
        return turns
    text = checked_text(fields["system"], f'{where}: "system"')
    if turns and turns[0].role == "system":
        if turns[0].content == text:
            return turns
        raise RecordError(f'{where}: has a column "system" and another system message. Keep one of the two.')
    return (Message("system", text), *turns)


def chat_of(conversation: Conversation, fields: dict, where: str) -> Chat:
    """A conversation with the tools of its row, once its calls and results are checked.

    Raises:
        RecordError: results without calls, calls of tools that are not there, columns that would be lost.
    """
    for lost in ("functions", "chat_template_kwargs"):
        if fields.get(lost):
            hint = ' Rename it to "tools".' if lost == "functions" else ""
            raise RecordError(f'{where}: the column "{lost}" of the row would be lost: nothing reads it.{hint}')
    value = fields.get("tools")
    tools = definitions_of(value, f'{where}: "tools"') if value else ()
    if tools or any(message.role == "tool" or message.tool_calls for message in conversation):
        check_results(conversation, tools, where)
    return Chat(conversation, tools)


def conversation_of(value: object, where: str, reading: Reading) -> Conversation:
    """Turns from a list of messages, or from that list as a JSON string (tables cannot hold lists).

    Raises:
        RecordError: not a list of messages.
    """
    items = list_of(value, where, f"messages, {_MESSAGE}")
    return tuple([message_of(item, f"{where}[{number}]", reading) for number, item in enumerate(items)])


def message_of(item: object, where: str, reading: Reading) -> Message:
    """One turn.

    Raises:
        RecordError: says what was expected.
    """
    if not isinstance(item, dict):
        raise RecordError(f"{where}: expected {_MESSAGE}, got {kind(item)}.")
    role = _role(item, where)
    item = without_ignored(item, reading, _OF_RESULTS if role == "tool" else frozenset())
    content = item.get("content")
    if len(item) == 2 and isinstance(content, str):
        return Message(role, checked_text(content, where))
    _check_keys(item, role, where)
    calls = _calls(item, role, where, reading)
    text, ranges = _content(content, bool(calls), item, where, reading)
    if ranges and item.get("train_detail"):
        raise RecordError(f'{where}: has "train_detail" and parts with weights. Keep one of the two.')
    return Message(
        role,
        text,
        weight=own_weight(item, where),
        reasoning=_reasoning(item, where),
        tool_calls=calls,
        name=_optional_text(item, "name", where),
        tool_call_id=_optional_text(item, "tool_call_id", where),
        ranges=ranges or _train_detail(item, text, where),
    )


def _role(item: dict, where: str) -> str:
    role = item.get("role")
    if isinstance(role, str) and role in ROLES:
        return role
    if role is None:
        hint = ""
        if "from" in item and "value" in item:
            hint = (
                ' "from" and "value" are ShareGPT\'s: call the column "conversations", '
                "--config.data.reading.columns='(\"conversations=messages\",)'."
            )
        raise RecordError(f'{where}: "role" is missing. Expected {_MESSAGE}.{hint}')
    hint = f" Use {_ROLE_HINTS[role]!r}." if isinstance(role, str) and role in _ROLE_HINTS else ""
    raise RecordError(f"{where}: unknown role {role!r}, expected one of {', '.join(ROLES)}.{hint}")


def _check_keys(item: dict, role: str, where: str) -> None:
    refuse_lost(item, _KEYS, "message", where)
    only = dict.fromkeys((*_REASONING, "tool_calls", "function_call"), "assistant")
    only |= dict.fromkeys(_OF_RESULTS, "tool")
    for key, owner in only.items():
        if item.get(key) and role != owner:
            raise RecordError(
                f'{where}: "{key}" belongs to a message of role {owner}, this one is {role}. Remove it, or leave it '
                f"out by --config.data.reading.ignore=\"('{key}',)\"."
            )


def _calls(item: dict, role: str, where: str, reading: Reading) -> tuple[ToolCall, ...]:
    if item.get("function_call"):  # of OpenAI's older form
        if item.get("tool_calls"):
            raise RecordError(f'{where}: has both "tool_calls" and "function_call". Keep one of the two.')
        return (call_of(item["function_call"], f'{where}: "function_call"', reading),)
    return calls_of(item.get("tool_calls"), f'{where}: "tool_calls"', reading) if role == "assistant" else ()


def _content(content: object, has_calls: bool, item: dict, where: str, reading: Reading) -> tuple[str, Ranges]:
    """The text and the ranges of it that have weights of their own."""
    if isinstance(content, str):
        return checked_text(content, where), ()
    if content is None:
        if has_calls:
            return "", ()
        key = "content" in item
        raise RecordError(f"{where}: the content is null." if key else f'{where}: "content" is missing.')
    if not isinstance(content, list):
        raise RecordError(f"{where}: the content must be a string or a list of text parts, got {kind(content)}.")
    text, ranges = "", []
    for number, part in enumerate(content):
        piece, weight = _part(part, f'{where}: "content"[{number}]', reading)
        if weight is not None and piece:
            ranges.append((len(text), len(text) + len(piece), weight))
        text += piece
    return text, tuple(ranges)


def _part(part: object, where: str, reading: Reading) -> tuple[str, float | None]:
    if not isinstance(part, dict):
        raise RecordError(f'{where}: expected {{"type": "text", "text": ...}}, got {kind(part)}.')
    part = without_ignored(part, reading)
    of_type = "text" if part.get("type") is None else part["type"]
    if of_type not in ("text", "input_text", "output_text"):
        raise RecordError(f"{where}: a part of type {of_type!r}; only text can be trained on. Remove it or the row.")
    refuse_lost(part, {"type", "weight", "train", *_PART_TEXTS}, "part", where)
    texts = [part[key] for key in _PART_TEXTS if part.get(key) is not None]
    if len(texts) != 1:
        raise RecordError(f'{where}: expected one text, {{"type": "text", "text": ...}}.')
    return checked_text(texts[0], where), own_weight(part, where)


def _reasoning(item: dict, where: str) -> str:
    found = {key: item[key] for key in _REASONING if item.get(key)}
    if len(set(map(str, found.values()))) > 1:
        raise RecordError(f"{where}: {', '.join(map(repr, found))} differ. Keep one of them.")
    return checked_text(next(iter(found.values())), where) if found else ""


def _optional_text(item: dict, key: str, where: str) -> str:
    value = item.get(key)
    return "" if value is None else checked_text(value, f'{where}: "{key}"')


def _train_detail(item: dict, text: str, where: str) -> Ranges:
    """Ranges of characters, ends inclusive, of which is said whether they are trained."""
    value = item.get("train_detail")
    if value is None:
        return ()
    where = f'{where}: "train_detail"'
    if not isinstance(value, list):
        raise RecordError(f"{where}: expected a list of begin_offset, end_offset, train, got {kind(value)}.")
    ranges = []
    for number, entry in enumerate(value):
        here = f"{where}[{number}]"
        if not isinstance(entry, dict):
            raise RecordError(f"{here}: expected begin_offset, end_offset and train, got {kind(entry)}.")
        start, last = (number_of(entry.get(key), f'{here}: "{key}"') for key in ("begin_offset", "end_offset"))
        if not start <= last < len(text):
            raise RecordError(
                f"{here}: characters {start} to {last} (inclusive) do not lie in the {len(text)} of the content."
            )
        ranges.append((start, last + 1, flag_of(entry.get("train"), f'{here}: "train"')))
    ranges.sort()
    for (_, end, _), (start, *_) in itertools.pairwise(ranges):
        if start < end:
            raise RecordError(f"{where}: ranges overlap at character {start}.")
    return tuple(ranges)
