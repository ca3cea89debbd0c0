"""Examples as rows of JSONL that read as the same examples: the way back from what `formats/` reads.

Data sets that are exported and rows that are made of a model's own answers are written by it.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from sft_jax.data.conversations import Chat, Conversation, Example, Labelled, Message, Preference, Segments


def example_fields(example: Example) -> dict[str, Any]:
    """The columns of an example, as plain JSON values."""
    if isinstance(example, Labelled):
        asked = next(number for number, turn in enumerate(example.messages) if turn.weight != 0)
        parts = {"prompt": example.messages[:asked], "completion": example.messages[asked:]}
        fields: dict[str, Any] = {name: _messages(turns) for name, turns in parts.items()}
        return fields | {"label": example.desirable} | ({"tools": list(example.tools)} if example.tools else {})
    if isinstance(example, Chat):
        fields = {"messages": _messages(example.messages)}
        return fields | ({"tools": list(example.tools)} if example.tools else {})
    if isinstance(example, Segments):
        return {"segments": [{"text": part.text, "weight": part.weight} for part in example.parts]}
    if isinstance(example, Preference):
        fields = {name: _messages(getattr(example, name)) for name in ("prompt", "chosen", "rejected")}
        fields |= {"margin": example.margin} if example.margin else {}
        return fields | ({"tools": list(example.tools)} if example.tools else {})
    tokens, weights = (list(values) for values in (example.tokens, example.weights))
    return {"input_ids": [int(token) for token in tokens], "weights": [float(weight) for weight in weights]}


def lines_of(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as the text of a JSONL file."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def _messages(messages: Conversation) -> list[dict[str, Any]]:
    return [_message(message) for message in messages]


def _message(message: Message) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": message.role, "content": _content(message)}
    if message.weight is not None:
        fields["weight"] = message.weight
    if message.reasoning:
        fields["reasoning_content"] = message.reasoning
    if message.tool_calls:
        fields["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            | ({"id": call.id} if call.id else {})
            for call in message.tool_calls
        ]
    named = {"name": message.name, "tool_call_id": message.tool_call_id}
    return fields | {name: value for name, value in named.items() if value}


def _content(message: Message) -> str | list[dict[str, Any]]:
    """The content; in parts where ranges of it have weights of their own."""
    if not message.ranges:
        return message.content
    parts, at = [], 0
    for start, end, weight in sorted(message.ranges):
        if start > at:
            parts.append({"type": "text", "text": message.content[at:start]})
        parts.append({"type": "text", "text": message.content[start:end], "weight": weight})
        at = end
    if at < len(message.content):
        parts.append({"type": "text", "text": message.content[at:]})
    return parts
