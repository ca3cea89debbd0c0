"""An example of the page: its text piece by piece, with the weights, ids and speakers that training sees."""

import itertools

import pytest

from sft_jax.audit.preview.examples import dropped_row, rendered_examples
from sft_jax.data.conversations import Chat, Message, Preference, Segment, Segments, TokenExample
from sft_jax.data.records import DroppedRow, Record


def unrolled(runs):
    return list(itertools.chain.from_iterable([value] * count for count, value in runs))


def page_example(renderer, record, notes=None, sequence_length=0):
    (shown,) = rendered_examples([record], renderer, "trained", notes or {}, sequence_length)
    return shown


def test_tokens_weights_and_speakers(renderer, record):
    shown = page_example(renderer, record(1, "the", "a", weight=0.5, group="g"), {"t:1": "changed"})
    whole = renderer.render_many([record(1, "the", "a").example])[0][0]
    before = ["<|im_start|>", *"user\na", "<|im_end|>", "\n", "<|im_start|>", *"assistant\n"]
    assert shown["pieces"] == [*before, "the", "<|im_end|>", "\n"]
    assert shown["ids"] == whole.tokens.tolist()
    assert unrolled(shown["weights"]) == [0.0] * len(before) + [0.5, 0.5, 0.0]
    assert unrolled(shown["messages"]) == whole.messages.tolist()
    assert shown["roles"] == ["user", "assistant"]
    assert (shown["tokens"], shown["trained"]) == (len(whole.tokens), 2)
    assert (shown["id"], shown["kind"], shown["group"], shown["note"]) == ("t:1", "trained", "g", "changed")


def test_bytes_of_one_character_are_one_piece(renderer, record):
    shown = page_example(renderer, record(1, "é🙂", "a"))
    at = shown["pieces"].index("🙂")
    assert "".join(shown["pieces"]) == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\né🙂<|im_end|>\n"
    assert len(shown["ids"][at]) == 4
    assert len(shown["ids"][at - 1]) == 2
    assert unrolled(shown["weights"])[at] == 1
    assert len(shown["pieces"]) == len(shown["ids"]) == len(unrolled(shown["weights"]))
    assert len(shown["pieces"]) == len(unrolled(shown["messages"]))


def test_a_pair_is_its_prompt_and_both_answers(renderer):
    pair = Preference((Message("user", "a"),), (Message("assistant", "bé"),), (Message("assistant", "c"),))
    shown = page_example(renderer, Record("t:1", pair, {}))
    said = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nbé<|im_end|>\nc<|im_end|>\n"
    assert "".join(shown["pieces"]) == said
    weighted = zip(shown["pieces"], unrolled(shown["weights"]), strict=True)
    assert "".join(piece for piece, weight in weighted if weight) == "bé<|im_end|>c<|im_end|>"
    assert shown["roles"] == ["user", "assistant", "assistant"]


def test_an_example_of_tokens_is_decoded(renderer):
    ids = renderer.tokenizer("the cat").input_ids
    shown = page_example(renderer, Record("t:1", TokenExample(ids, [0.0, *[1.0] * (len(ids) - 1)]), {}))
    assert "".join(shown["pieces"]) == "the cat"
    assert shown["ids"] == ids


def test_what_cannot_be_rendered_is_shown_as_dropped(renderer, record):
    shown = page_example(renderer, record(1, "a" * 50), sequence_length=20)
    assert shown["kind"] == "dropped"
    assert shown["note"].startswith("longer than 20 tokens")


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
    shown = dropped_row(Record("t:1", example, {"input_ids": [1]}), DroppedRow("t:1", "why", "more"))
    assert (shown["pieces"], shown["roles"], shown["note"], shown["kind"]) == (pieces, roles, "why (more)", "dropped")
    assert unrolled(shown["weights"]) == [0] * len(pieces)
    assert unrolled(shown["messages"]) == list(range(len(pieces)))
