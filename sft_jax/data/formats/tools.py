"""Tools in conversations: their definitions, the calls an assistant makes, and the results that answer them."""

from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax.data.conversations import Message, ToolCall
from sft_jax.data.formats.values import (
    MergedObject,
    checked_text,
    decode_json,
    json_text,
    kind,
    refuse_lost,
    refuse_merged_null,
    without_ignored,
)
from sft_jax.data.reading import Reading, RecordError

_CALL = '{"function": {"name": ..., "arguments": {...}}} or {"name": ..., "arguments": {...}}'
_AROUND, _CALLED = {"id", "type", "index"}, {"name", "arguments"}
_CALL_KEYS = _CALLED | {"id", "function"}
_NAMED = {"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"}  # names stand under them
_VALUES = {"default", "const", "enum", "examples"}  # values stand under them, and not schemas
_NULLABLE = {"default", "const"}
_TOOLS = "a list of tool definitions (JSON objects), or that list as a JSON string"


def definitions_of(value: object, where: str) -> tuple[Mapping[str, Any], ...]:
    """Definitions of tools from a list, a single definition, either of them as a JSON string, or null for none.

    Raises:
        RecordError: anything else; names alone do not say how a tool is called.
    """
    if isinstance(value, str):
        value = decode_json(value, where, _TOOLS) if value.strip() else None
    if value is None:
        return ()
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise RecordError(f"{where}: expected {_TOOLS}, got {kind(value)}.")
    for number, item in enumerate(value):
        if not isinstance(item, dict):
            raise RecordError(f"{where}[{number}]: expected the definition of a tool, an object, got {kind(item)}.")
    return tuple(_checked_definition(item, f"{where}[{number}]") for number, item in enumerate(value))


def calls_of(value: object, where: str, reading: Reading) -> tuple[ToolCall, ...]:
    """The calls of one assistant's turn.

    Raises:
        RecordError: a call without a name, or whose arguments are not an object.
    """
    if value is None:
        return ()
    if not isinstance(value, list):
        raise RecordError(f"{where}: expected a list of calls, {_CALL}, got {kind(value)}.")
    return tuple(call_of(item, f"{where}[{number}]", reading) for number, item in enumerate(value))


def call_of(item: object, where: str, reading: Reading) -> ToolCall:
    """One call, with its arguments as an object or as a JSON string of one.

    Raises:
        RecordError: no name, arguments that are not an object, or keys that would be lost.
    """
    if not isinstance(item, dict):
        raise RecordError(f"{where}: expected {_CALL}, got {kind(item)}.")
    item = without_ignored(item, reading, _CALL_KEYS)
    inner = item if item.get("function") is None else item["function"]
    if not isinstance(inner, dict):
        raise RecordError(f'{where}: "function": expected an object, got {kind(inner)}.')
    refuse_lost(item, _AROUND | (_CALLED if inner is item else {"function"}), "call", where)
    if inner is not item:
        refuse_lost(without_ignored(inner, reading, _CALL_KEYS), _CALLED, "call", f'{where}: "function"')
    name = inner.get("name")
    if not isinstance(name, str) or not name:
        raise RecordError(f"{where}: the call has no name. Expected {_CALL}.")
    identity = item.get("id")
    if identity is not None and not isinstance(identity, str):
        raise RecordError(f'{where}: "id": expected a string, got {kind(identity)}.')
    return ToolCall(checked_text(name, where), _arguments(inner.get("arguments"), where), identity or "")


def _arguments(value: object, where: str) -> dict:
    where = f'{where}: "arguments"'
    if value is None or (isinstance(value, str) and not value.strip()):
        state = "missing" if value is None else "empty"
        raise RecordError(f"{where} is {state}. Write {{}} for a call without arguments.")
    if isinstance(value, str):
        value = decode_json(value, where, "a JSON object")
    if not isinstance(value, dict):
        raise RecordError(f"{where}: expected an object, got {kind(value)}.")
    json_text(value, where)
    return value


def _checked_definition(item: dict, where: str) -> dict:
    try:
        definition = _definition(item, where)
    except RecursionError as error:
        raise RecordError(f"{where}: is nested too deeply.") from error
    json_text(definition, where)
    return definition


def _definition(value: Any, where: str, *, are_names: bool = False) -> Any:
    """A definition, or a part of one, without the keys that Arrow added to its objects.

    In a JSON schema null is a value of `default` and `const` alone: elsewhere a key that is null says nothing.

    Args:
        value: the part.
        where: stands in errors.
        are_names: the keys of this object are names that somebody chose (of properties), not words of JSON schema.

    Raises:
        RecordError: a null of which nobody knows whether the row had it.
    """
    if isinstance(value, list):
        return [_definition(item, where) for item in value]
    if not isinstance(value, dict):
        return value
    if isinstance(value, MergedObject):
        if not are_names:
            refuse_merged_null(value, where, _NULLABLE)
        value = {key: inner for key, inner in value.items() if inner is not None}
    return {
        key: inner
        if key in _VALUES and not are_names
        else _definition(inner, where, are_names=key in _NAMED and not are_names)
        for key, inner in value.items()
    }


def check_results(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], where: str) -> None:
    """Checks that results follow calls, and that calls are of tools that are defined.

    A result must come after an assistant's turn or another result. Where the conversation has calls as such (and not
    only spelt in the text of a turn), that turn must have one, and an id must be that of a call before it.

    Raises:
        RecordError: says which message.
    """
    structured = any(message.tool_calls for message in messages)
    calls: tuple[ToolCall, ...] | None = None  # of the assistant's turn that results may follow
    for number, message in enumerate(messages):
        if message.role == "assistant":
            calls = message.tool_calls
        elif message.role != "tool":
            calls = None
        elif calls is None or (structured and not calls):
            raise RecordError(
                f"{where}[{number}]: a tool's result without a call before it. Expected an assistant's turn with "
                '"tool_calls" before it.'
            )
        elif message.tool_call_id and calls and message.tool_call_id not in {call.id for call in calls}:
            ids = ", ".join(repr(call.id) for call in calls)
            raise RecordError(
                f'{where}[{number}]: "tool_call_id" {message.tool_call_id!r} is not the id of a call before it; '
                f"there are: {ids}."
            )
    _check_names(messages, tools, where)


def _check_names(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], where: str) -> None:
    names = [_name(tool) for tool in tools]
    if not names or None in names:  # none given, or of a kind that has no name
        return
    for number, message in enumerate(messages):
        for call in message.tool_calls:
            if call.name not in names:
                known = ", ".join(map(repr, names))
                raise RecordError(
                    f"{where}[{number}]: calls {call.name!r}, which is not among the tools of the row: {known}."
                )


def _name(tool: Mapping[str, Any]) -> str | None:
    inner = tool.get("function", tool)
    return inner.get("name") if isinstance(inner, Mapping) else None
