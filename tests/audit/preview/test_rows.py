"""A row of the page: its text piece by piece, with the weights, ids and speakers that training sees."""

import itertools

import pytest

from sft_jax.audit.preview.rows import dropped_row, rendered_rows
from sft_jax.data.conversations import Chat, Message, Preference, Segment, Segments, TokenExample
from sft_jax.data.records import DroppedRow, Record


def unrolled(runs):
    return list(itertools.chain.from_iterable([value] * count for count, value in runs))


def page_row(renderer, record, notes=None, sequence_length=0):
    (row,) = rendered_rows([record], renderer, "trained", notes or {}, sequence_length)
    return row


def test_tokens_weights_and_speakers(renderer, record):
    row = page_row(renderer, record(1, "the", "a", weight=0.5, group="g"), {"t:1": "changed"})
    whole = renderer.render_many([record(1, "the", "a").example])[0][0]
    before = ["<|im_start|>", *"user\na", "<|im_end|>", "\n", "<|im_start|>", *"assistant\n"]
    assert row["pieces"] == [*before, "the", "<|im_end|>", "\n"]
    assert row["ids"] == whole.tokens.tolist()
    assert unrolled(row["weights"]) == [0.0] * len(before) + [0.5, 0.5, 0.0]
    assert unrolled(row["messages"]) == whole.messages.tolist()
    assert row["roles"] == ["user", "assistant"]
    assert (row["tokens"], row["trained"]) == (len(whole.tokens), 2)
    assert (row["id"], row["kind"], row["group"], row["note"]) == ("t:1", "trained", "g", "changed")


def test_bytes_of_one_character_are_one_piece(renderer, record):
    row = page_row(renderer, record(1, "é🙂", "a"))
    at = row["pieces"].index("🙂")
    assert "".join(row["pieces"]) == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\né🙂<|im_end|>\n"
    assert len(row["ids"][at]) == 4
    assert len(row["ids"][at - 1]) == 2
    assert unrolled(row["weights"])[at] == 1
    assert len(row["pieces"]) == len(row["ids"]) == len(unrolled(row["weights"])) == len(unrolled(row["messages"]))


def test_a_row_of_tokens_is_decoded(renderer):
    ids = renderer.tokenizer("the cat").input_ids
    row = page_row(renderer, Record("t:1", TokenExample(ids, [0.0, *[1.0] * (len(ids) - 1)]), {}))
    assert "".join(row["pieces"]) == "the cat"
    assert row["ids"] == ids


def test_what_cannot_be_rendered_is_shown_as_dropped(renderer, record):
    row = page_row(renderer, record(1, "a" * 50), sequence_length=20)
    assert row["kind"] == "dropped"
    assert row["note"].startswith("longer than 20 tokens")


DROPPED = [
    (Chat((Message("user", "a"), Message("assistant", "b"))), ["a\n", "b\n"], ["user", "assistant"]),
    (Segments((Segment("a", 0.0), Segment("b", 1.0))), ["a", "b"], ["segment", "segment"]),
    (
        Preference((Message("user", "a"),), (Message("assistant", "b"),), (Message("assistant", "c"),)),
        ["a\n", "b\n", "c\n"],
        ["prompt", "chosen", "rejected"],
    ),
    (TokenExample([1], [1.0]), ['{"input_ids": [1]}'], ["tokens"]),
]


@pytest.mark.parametrize(("example", "pieces", "roles"), DROPPED)
def test_dropped_rows(example, pieces, roles):
    row = dropped_row(Record("t:1", example, {"input_ids": [1]}), DroppedRow("t:1", "why", "more"))
    assert (row["pieces"], row["roles"], row["note"], row["kind"]) == (pieces, roles, "why (more)", "dropped")
    assert unrolled(row["weights"]) == [0] * len(pieces)
    assert unrolled(row["messages"]) == list(range(len(pieces)))
