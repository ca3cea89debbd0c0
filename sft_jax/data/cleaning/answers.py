"""Steps that drop records, or answers, by what the answers look like."""

import dataclasses
import json

from sft_jax.data.cleaning.contents import conversations, final_answers
from sft_jax.data.cleaning.steps import Change, Drop, Outcome
from sft_jax.data.conversations import Chat, Labelled, Message, Preference, without_leading_answers
from sft_jax.data.records import Record
from sft_jax.data.texts import words_of

_SHOWN = 60  # characters of an answer in a detail


def drop_leading_answers(record: Record) -> Outcome:
    """Drops what an assistant says before anybody asks it, as where a conversation was cut out of a longer one."""
    field = {Chat: "messages", Labelled: "messages", Preference: "prompt"}.get(type(record.example))
    if field is None:
        return None
    messages = getattr(record.example, field)
    kept = without_leading_answers(messages)
    if kept == messages:
        return None
    if all(message.role != "user" for message in kept):
        return Drop("nobody asks the assistant", f"{len(messages)} messages")
    example = dataclasses.replace(record.example, **{field: kept})
    return Change(dataclasses.replace(record, example=example), "the answers before the first question are left out")


def drop_empty_answers(record: Record) -> Outcome:
    """Drops a record in which an assistant's turn says nothing and calls nothing."""
    for messages in conversations(record.example):
        for number, message in enumerate(messages):
            if message.role == "assistant" and _says_nothing(message):
                return Drop("an answer is empty", f"message {number}")
    return None


def _says_nothing(message: Message) -> bool:
    return not (message.content.strip() or message.reasoning.strip() or message.tool_calls)


def drop_answers_shorter_than(record: Record, words: int) -> Outcome:
    """Drops a record whose final answer has fewer words."""
    for answer in final_answers(record.example):
        if len(words_of(answer)) < words:
            return Drop(f"the answer has fewer than {words} words", repr(answer[:_SHOWN]))
    return None


def drop_answers_longer_than(record: Record, words: int) -> Outcome:
    """Drops a record whose final answer has more words."""
    for answer in final_answers(record.example):
        count = len(words_of(answer))
        if count > words:
            return Drop(f"the answer has more than {words} words", f"{count} words")
    return None


def drop_invalid_json_answers(record: Record) -> Outcome:
    """Drops a record whose final answer is not JSON."""
    for answer in final_answers(record.example):
        try:
            json.loads(answer, parse_constant=_refuse)
        except json.JSONDecodeError as error:
            return Drop("the answer is not valid JSON", f"{error.msg} at character {error.pos + 1}")
        except RecursionError:
            return Drop("the answer is not valid JSON", "nested too deeply")
    return None


def _refuse(name: str) -> None:
    raise json.JSONDecodeError(f"{name} is not JSON", name, 0)
