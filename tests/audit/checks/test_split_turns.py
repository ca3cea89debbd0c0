"""Calls that stand in a turn of their own."""

import json

import pytest

from sft_jax.audit.checks import CheckedData
from sft_jax.audit.checks.split_turns import split_turns
from sft_jax.data.formats import FORMATS
from sft_jax.data.reading import DEFAULT
from sft_jax.data.records import Record
from sft_jax.data.tokenized import TokenizedExamples

CALLS = [{"name": "f", "arguments": {"city": city}} for city in ("Oslo", "Rome")]
ASKED, ANSWERED = {"from": "human", "value": "How warm?"}, {"from": "gpt", "value": "4 and 17."}
RESULT = {"from": "observation", "value": "4"}


def called(value, **more):
    return {"from": "function_call", "value": json.dumps(value), **more}


def row(*turns):
    return FORMATS["sharegpt"].parse({"conversations": [ASKED, *turns, ANSWERED]}, "here", DEFAULT)


def seen(*examples, **fields):
    records = [Record(f"a:{number}", example, {}) for number, example in enumerate(examples, 1)]
    return split_turns(CheckedData(records, TokenizedExamples.from_examples([], []), **fields))


TWO_CALLS = row(called(CALLS[0]), called(CALLS[1]), RESULT, RESULT)
TEXT_FIRST = row({"from": "gpt", "value": "Let me see."}, called(CALLS[0]), RESULT)
GOOD = [row(called(CALLS), RESULT, RESULT), row(called(CALLS[0]), RESULT, called(CALLS[1]), RESULT)]


def test_calls_behind_another_turn_of_the_assistant(shown):
    (found,) = seen(*GOOD, TWO_CALLS, TEXT_FIRST)
    assert shown(found) == ["a:3", "a:4"]
    assert found.title.startswith(
        "2 rows have a call in a turn of its own right behind another turn of the assistant, 1 "
    )
    assert found.examples[0].text == "f({'city': 'Oslo'}) | f({'city': 'Rome'})"
    assert found.examples[1].text == "Let me see. | f({'city': 'Oslo'})"


def test_calls_in_one_turn_or_behind_a_result():
    assert seen(*GOOD) == []


@pytest.mark.parametrize(
    "fields", [{"end_of_turn": "none"}, {"end_of_turn": "last"}, {"trains_last": True}, {"trains_answers": False}]
)
def test_where_the_end_of_the_first_is_not_trained(fields):
    assert seen(TWO_CALLS, **fields) == []
    assert seen(row(called(CALLS[0], weight=0), called(CALLS[1]), RESULT)) == []
