"""Steps that drop records by their answers."""

import pytest

from sft_jax.data.conversations import Chat, Message, Preference, Segment, Segments, ToolCall
from sft_jax.data.records import Record

DROPPED = [  # (step, answer, reason, detail)
    ("drop_empty_answers", " \n", "an answer is empty", "message 1"),
    ("drop_answers_shorter_than=3", "two words", "the answer has fewer than 3 words", "'two words'"),
    ("drop_answers_longer_than=2", "one two three", "the answer has more than 2 words", "3 words"),
    ("drop_invalid_json_answers", '{"a": 1', "the answer is not valid JSON", "Expecting ',' delimiter at character 8"),
    ("drop_invalid_json_answers", "NaN", "the answer is not valid JSON", "NaN is not JSON at character 1"),
    ("drop_invalid_json_answers", "[" * 100_000, "the answer is not valid JSON", "nested too deeply"),
]


@pytest.mark.parametrize(("step", "answer", "reason", "detail"), DROPPED, ids=range(len(DROPPED)))
def test_dropped(record, clean, step, answer, reason, detail):
    kept, log = clean([record(answer)], step)
    assert kept == []
    (dropped,) = log.dropped
    assert (dropped.id, dropped.reason, dropped.detail) == ("t:1", f"{step.split('=')[0]}: {reason}", detail)


KEPT = [
    ("drop_empty_answers", "a"),
    ("drop_answers_shorter_than=2", "two words"),
    ("drop_answers_longer_than=2", "two words"),
    ("drop_invalid_json_answers", ' {"a": [1, null]} \n'),
]


@pytest.mark.parametrize(("step", "answer"), KEPT)
def test_kept(record, clean, step, answer):
    records = [record(answer)]
    kept, log = clean(records, step)
    assert kept == records
    assert (log.dropped, dict(log.changes)) == ([], {})


@pytest.mark.parametrize("step", ["drop_empty_answers", "drop_answers_shorter_than=9", "drop_invalid_json_answers"])
@pytest.mark.parametrize(
    "example",
    [
        Chat((Message("user", "?"), Message("assistant", "", tool_calls=(ToolCall("f", {}),)))),
        Segments((Segment("", 1.0),)),
    ],
)
def test_what_has_no_answer_in_words_is_not_judged(clean, step, example):
    assert len(clean([Record("t:1", example, {})], step)[0]) == 1


def test_an_empty_answer_in_the_middle(clean):
    turns = (Message("user", "a"), Message("assistant", ""), Message("user", "b"), Message("assistant", "c"))
    assert clean([Record("t:1", Chat(turns), {})], "drop_empty_answers")[1].dropped[0].detail == "message 1"


SYSTEM, USER, SAID = Message("system", "s"), Message("user", "u"), Message("assistant", "a")
RESULT = Message("tool", "r")


@pytest.mark.parametrize(
    ("messages", "kept"),
    [
        ((SAID, USER, SAID), (USER, SAID)),
        ((SYSTEM, SAID, SAID, RESULT, USER, SAID, USER, SAID), (SYSTEM, USER, SAID, USER, SAID)),
        ((SYSTEM, USER, SAID), (SYSTEM, USER, SAID)),
        ((SAID, SAID), None),
        ((SYSTEM, SAID), None),
    ],
)
def test_leading_answers_are_left_out_and_the_rest_is_kept(clean, messages, kept):
    found, log = clean([Record("t:1", Chat(messages), {})], "drop_leading_answers")
    assert [record.example.messages for record in found] == ([] if kept is None else [kept])
    changed = {("drop_leading_answers", "the answers before the first question are left out"): 1}
    assert dict(log.changes) == (changed if kept not in (None, messages) else {})
    assert [row.reason for row in log.dropped] == (
        ["drop_leading_answers: nobody asks the assistant"] if kept is None else []
    )


def test_leading_answers_of_a_pair_and_of_text(clean):
    pair = Record("t:1", Preference((SAID, USER), (SAID,), (SAID,)), {})
    text = Record("t:2", Segments((Segment("a", 1.0),)), {})
    (cut, same), _ = clean([pair, text], "drop_leading_answers")
    assert cut.example.prompt == (USER,)
    assert same is text
