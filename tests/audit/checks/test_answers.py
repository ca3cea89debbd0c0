"""Answers that teach little, placeholders, JSON."""

import pytest

from sft_jax.audit.checks.answers import boilerplate, empty_answers, one_word_answers, repeated_answers
from sft_jax.audit.checks.json_answers import json_answers
from sft_jax.audit.checks.placeholders import placeholders
from sft_jax.data.conversations import Chat, Message
from sft_jax.data.records import Record

LONG = "this is an answer of eight words exactly"
PHRASES = [f"As an AI model I say {word} and no more of it, I hope this helps you." for word in "abcdefghij"]


@pytest.mark.parametrize(
    ("check", "answers", "found"),
    [
        (empty_answers, ["a", "", " \n", "b"], ["a:2", "a:3"]),
        (one_word_answers, ["yes", "of course", "No.", ""], ["a:1", "a:3"]),
        (one_word_answers, ["我是助手", "是"], ["a:2"]),  # a sentence without spaces is no single word
        (one_word_answers, ["yes", "no"] * 5, []),  # labels
        (one_word_answers, [f'["{word}"]' for word in LONG.split()] * 3, []),  # JSON
        (repeated_answers, [LONG, LONG, "short one", "short one"], ["a:2"]),
        (placeholders, ["I am {{name}}.", "{{ user.name }}", "fine", "{}", "{name}"], ["a:1", "a:2"]),
        (
            placeholders,
            ["Dear [Your Name],", "[insert date here]", "[1]", "Hi <your name>", "<b>"],
            ["a:1", "a:2", "a:4"],
        ),
        (placeholders, ["Hello ${user}", "%(city)s", "100% (sure)s", "Lorem ipsum dolor"], ["a:1", "a:2", "a:4"]),
    ],
)
def test_rows(checked, shown, check, answers, found):
    seen = check(checked(*((f"q{n}", answer) for n, answer in enumerate(answers))))
    assert [row for one in seen for row in shown(one)] == found
    assert [one.share for one in seen] == [len(found) / len(answers)] * bool(found)


def test_every_answer_of_a_conversation_counts(checked):
    turns = (Message("user", "a"), Message("assistant", ""), Message("user", "b"), Message("assistant", "c"))
    made = checked(("q", "a"))
    made.records[0] = Record("a:1", Chat(turns), {})
    assert empty_answers(made)[0].count == 1


def test_boilerplate_is_named_as_far_as_it_goes(checked):
    begins, ends = boilerplate(checked(*((f"q{n}", phrase) for n, phrase in enumerate(PHRASES))))
    assert begins.examples[0].text == "10 x As an AI model I say "
    assert ends.examples[0].text == "10 x  and no more of it, I hope this helps you."
    assert begins.share == 1
    assert boilerplate(checked(*((f"q{n}", phrase) for n, phrase in enumerate(PHRASES[:4])))) == []


@pytest.mark.parametrize(
    ("answers", "count", "text"),
    [
        (['{"a": 1}', '{"a": 2}', '{"a": '], 1, "Expecting value at character 7: {"),
        (['{"a": 1}', "[1]", "sorry"], 1, "Expecting value at character 1: sorry"),
        (["fine", "{x", "good"], 0, ""),  # most are no JSON: nobody meant it
        (["[" * 100_000, "{}", "{}"], 1, "nested too deeply: [["),
        (['{"a": 1, "b": 2}'] * 20 + ['{"a": 1}'], 1, "no 'b': {"),
        (['{"a": 1, "b": 2}'] * 10 + ['{"a": 1}'] * 10, 0, ""),  # a key of half of them may be left out
        (["[1]", '{"a": NaN}', '{"a": 1}'], 1, "NaN is not JSON at character 1: {"),
    ],
)
def test_json(checked, answers, count, text):
    seen = json_answers(checked(*((f"q{n}", answer) for n, answer in enumerate(answers))))
    assert sum(one.count for one in seen) == count
    assert all(one.examples[0].text.startswith(text) for one in seen)
