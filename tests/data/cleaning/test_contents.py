"""Texts of all forms of examples: every one is reached, and what belongs to them moves along."""

import dataclasses

import pytest

from sft_jax.data.cleaning.contents import edit_texts, edited, final_answers, moved_ranges, prompt_of
from sft_jax.data.conversations import Chat, Message, Preference, Segment, Segments, TokenExample, ToolCall
from sft_jax.data.records import Record
from sft_jax.data.texts import words_of

USER, ANSWER = Message("user", "ask"), Message("assistant", "say")
CALL = Message("assistant", "", tool_calls=(ToolCall("f", {"key": ["v", {"k": "w"}, 3]}),))
EXAMPLES = [
    (Chat((USER, ANSWER)), Chat((Message("user", "ASK"), Message("assistant", "SAY")))),
    (
        Preference((USER,), (ANSWER,), (Message("assistant", "no"),)),
        Preference((Message("user", "ASK"),), (Message("assistant", "SAY"),), (Message("assistant", "NO"),)),
    ),
    (Segments((Segment("a", 0.0), Segment("b", 1.0))), Segments((Segment("A", 0.0), Segment("B", 1.0)))),
    (Segments((Segment("a", 1.0),), ends=True), Segments((Segment("A", 1.0),), ends=True)),
    (
        Chat((USER, Message("assistant", "x", weight=0.5, reasoning="why"))),
        Chat((Message("user", "ASK"), Message("assistant", "X", weight=0.5, reasoning="WHY"))),
    ),
]


@pytest.mark.parametrize(("before", "after"), EXAMPLES)
def test_every_text_is_edited(before, after):
    assert edited(before, str.upper) == after
    record = Record("t:1", before, {"kept": 1})
    assert edit_texts(record, str.upper, "louder").record == dataclasses.replace(record, example=after)
    assert edit_texts(record, str, "louder") is None


def test_arguments_only_where_asked():
    chat = Chat((USER, CALL))
    assert edited(chat, str.upper).messages[1] == CALL
    assert edited(chat, str.upper, in_arguments=True).messages[1].tool_calls[0].arguments == {
        "key": ["V", {"k": "W"}, 3]
    }


def test_token_records_have_no_text():
    example = TokenExample([1, 2], [0.0, 1.0])
    assert edited(example, str.upper) is example
    assert final_answers(example) == []
    assert prompt_of(example) == ()


def test_final_answers():
    assert final_answers(Chat((USER, ANSWER))) == ["say"]
    assert final_answers(Chat((USER, ANSWER, USER))) == []
    assert final_answers(Chat((USER, CALL))) == []
    assert final_answers(Preference((USER,), (ANSWER,), (Message("assistant", "no"),))) == ["say", "no"]


def test_prompt_of():
    assert prompt_of(Chat((USER, ANSWER, USER, ANSWER, ANSWER))) == (USER, ANSWER, USER)
    assert prompt_of(Preference((USER,), (ANSWER,), (ANSWER,))) == (USER,)


RANGES = [  # (before, after, range, where it stands then)
    ("ab  cd", "ab cd", (0, 2), (0, 2)),
    ("ab  cd", "ab cd", (4, 6), (3, 5)),
    ("  ab", "ab", (0, 4), (0, 2)),
    ("  ab", "ab", (0, 2), None),
    ("aXb", "aYYb", (0, 2), (0, 3)),
    ("aXb", "aYYb", (1, 2), (1, 3)),
    ("aXb", "aYYb", (2, 3), (3, 4)),
    ("ab  ", "ab", (1, 4), (1, 2)),
]


@pytest.mark.parametrize(("before", "after", "span", "expected"), RANGES)
def test_ranges_move_along(before, after, span, expected):
    assert moved_ranges(before, after, ((*span, 0.5),)) == (() if expected is None else ((*expected, 0.5),))


@pytest.mark.parametrize("weights", [(0.0, 0.5), (0.5, 0.5), (1.0, 0.0)])
def test_a_replacement_belongs_to_no_two_ranges(weights):
    """Each character has one weight; where two ranges met inside what was replaced, it is not trained."""
    before, after = "a mail@x b", "a [] b"
    found = moved_ranges(before, after, ((0, 5, weights[0]), (5, 10, weights[1])))
    characters = [weight for start, end, weight in found for _ in range(start, end)]
    shared = weights[0] if weights[0] == weights[1] else 0.0
    assert characters == [weights[0]] * 2 + [shared] * 2 + [weights[1]] * 2
    assert [start for start, _, _ in found[1:]] == [end for _, end, _ in found[:-1]]


def test_ranges_of_a_changed_message():
    message = Message("assistant", "  ab", ranges=((2, 4, 0.0),))
    assert edited(Chat((message,)), str.strip).messages[0] == Message("assistant", "ab", ranges=((0, 2, 0.0),))


@pytest.mark.parametrize(("text", "count"), [("", 0), ("don't stop", 3), ("#### 72", 1), ("日本 ok", 3), ("…", 0)])
def test_words(text, count):
    assert len(words_of(text)) == count
