"""The texts of an example, whatever its form: functions that read them, and that replace them by edited ones."""

import dataclasses
import difflib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from sft_jax.data.cleaning.steps import Change, Outcome
from sft_jax.data.conversations import Chat, Conversation, Example, Message, Preference, Segments
from sft_jax.data.records import Record

Edit = Callable[[str], str]


def edit_texts(record: Record, edit: Edit, reason: str, in_arguments: bool = False) -> Outcome:
    """The record with `edit` made to the text of every message or segment.

    Args:
        record: any; records of tokens have no text and stay.
        edit: a pure function.
        reason: of the change.
        in_arguments: edit the strings in arguments of tool calls too.
    """
    example = edited(record.example, edit, in_arguments)
    return None if example == record.example else Change(dataclasses.replace(record, example=example), reason)


def edited(example: Example, edit: Edit, in_arguments: bool = False) -> Example:
    """The example with `edit` made to all its texts; those of tokens have none."""
    if isinstance(example, Chat):
        return dataclasses.replace(example, messages=_messages(example.messages, edit, in_arguments))
    if isinstance(example, Preference):
        parts = {
            name: _messages(getattr(example, name), edit, in_arguments) for name in ("prompt", "chosen", "rejected")
        }
        return dataclasses.replace(example, **parts)
    if isinstance(example, Segments):
        return dataclasses.replace(example, parts=tuple(p._replace(text=edit(p.text)) for p in example.parts))
    return example


def _messages(messages: Conversation, edit: Edit, in_arguments: bool) -> Conversation:
    return tuple(_message(message, edit, in_arguments) for message in messages)


def _message(message: Message, edit: Edit, in_arguments: bool) -> Message:
    content = edit(message.content)
    calls = message.tool_calls
    if in_arguments:
        calls = tuple(call._replace(arguments=_strings(call.arguments, edit)) for call in calls)
    ranges = message.ranges
    if ranges and content != message.content:
        ranges = moved_ranges(message.content, content, ranges)
    return message._replace(content=content, reasoning=edit(message.reasoning), tool_calls=calls, ranges=ranges)


def _strings(value: Any, edit: Edit) -> Any:
    """A JSON value with its strings edited (not the keys of objects, which are names)."""
    if isinstance(value, str):
        return edit(value)
    if isinstance(value, dict):
        return {key: _strings(item, edit) for key, item in value.items()}
    return [_strings(item, edit) for item in value] if isinstance(value, list) else value


def moved_ranges(
    before: str, after: str, ranges: tuple[tuple[int, int, float], ...]
) -> tuple[tuple[int, int, float], ...]:
    """Character ranges of a text where they stand after it was edited.

    A range that begins or ends inside what was replaced takes all of the replacement; where ranges of different weights
    do, it is not trained. One of which nothing is left is gone. "ab  cd" -> "ab cd": (0, 2) stays, (4, 6) becomes
    (3, 5).
    """
    blocks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()

    def moved(at: int, is_end: bool) -> int:
        for kind, start, end, new_start, new_end in blocks:
            inside = start < at <= end if is_end else start <= at < end
            if inside and kind == "equal":
                return new_start + at - start
            if inside:
                return new_end if is_end else new_start
        return 0 if is_end else len(after)  # the start of the text as an end, the end as a start: nothing

    own: list[float | None] = [None] * len(after)
    for start, end, weight in ranges:
        for at in range(moved(start, False), moved(end, True)):
            own[at] = weight if own[at] in (None, weight) else 0.0
    runs, at = [], 0
    for weight, group in itertools.groupby(own):
        start, at = at, at + sum(1 for _ in group)
        if weight is not None:
            runs.append((start, at, weight))
    return tuple(runs)


def conversations(example: Example) -> Iterator[Conversation]:
    """The conversations of an example that has some."""
    if isinstance(example, Chat):
        yield example.messages
    elif isinstance(example, Preference):
        yield example.prompt + example.chosen
        yield example.prompt + example.rejected


def final_answers(example: Example) -> list[str]:
    """What the last turn of each conversation says, where that is the assistant's and calls no tool."""
    last = [messages[-1] for messages in conversations(example) if messages]
    return [message.content for message in last if message.role == "assistant" and not message.tool_calls]


def prompt_of(example: Example) -> Conversation:
    """A conversation up to its final answer; empty for examples that are none."""
    if isinstance(example, Preference):
        return example.prompt
    messages = example.messages if isinstance(example, Chat) else ()
    while messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    return messages
