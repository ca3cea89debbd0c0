"""Records to examples: nothing disappears unnamed."""

import dataclasses

import numpy as np
import pytest

from sft_jax.data.conversations import Chat
from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.data.tokenized import DroppedRow, TokenizedExamples, group_dropped
from sft_jax.data.tokenizing import NoExamplesError, tokenize_records


@pytest.fixture
def records(chat):
    turns = [
        ("user: Hi", "assistant: Ho"),
        ("system: S", "user: Hi", "assistant: Ho"),
        ("user: Hi", "assistant: " + "o" * 100),
        ("user: Hi",),
        ("user: Hi", "assistant: Hey"),
    ]
    return [Record(f"a.jsonl:{n}", Chat(chat(*turn)), {}) for n, turn in enumerate(turns, 1)]


@pytest.fixture
def renderer(chatml_tokenizer, chatml):
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + chatml
    return ConversationRenderer(chatml_tokenizer, refusing)


def test_bad_rows_are_dropped_and_named_the_others_kept(records, renderer):
    seen = []
    examples, dropped = tokenize_records(records, renderer, 80, lambda done, of: seen.append((done, of)))
    assert examples.ids == ["a.jsonl:1", "a.jsonl:5"]
    assert dropped == [
        DroppedRow("a.jsonl:2", "the chat template refuses the conversation", "no system"),
        DroppedRow("a.jsonl:3", "longer than 80 tokens", "123 tokens", tokens=123),
        DroppedRow("a.jsonl:4", "nothing to train on", "there is no assistant's turn"),
    ]
    assert len(examples) + len(dropped) == len(records)
    assert seen == [(5, 5)]
    # Hi / Ho: 7 + 2 + 2 tokens of the user, <|im_start|>assistant\n = 11, "Ho" and the end-of-turn, a newline
    assert examples.lengths.tolist() == [10 + 11 + 4, 10 + 11 + 5]
    assert examples.supervised.tolist() == [3, 4]
    tokens, weights = examples.example(1)
    expected = renderer.render(records[4].conversation)
    np.testing.assert_array_equal(tokens, expected.tokens)
    np.testing.assert_array_equal(weights, expected.weights)


def test_all_dropped_is_an_error_with_the_reasons(records, renderer):
    with pytest.raises(NoExamplesError, match=r"All 2 rows were dropped(.|\n)*1 x .*refuses.*a.jsonl:2, no system"):
        tokenize_records(records[1:3], renderer, 80)
    with pytest.raises(NoExamplesError, match="no records"):
        tokenize_records([], renderer, 80)


def test_first_token_is_never_supervised():
    examples = TokenizedExamples.from_examples([([1, 2], [1, 1]), ([3], [1])], ["a", "b"])
    assert examples.weights.tolist() == [0, 1, 0]
    assert examples.supervised.tolist() == [1, 0]
    assert examples.lengths.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("pairs", "ids", "words"),
    [
        ([([1, 2], [1])], ["a"], "a: tokens"),
        ([([], [])], ["a"], "at least 1"),  # other packers let empty examples vanish; here there are none
        ([([1], [-1])], ["a"], "not negative"),
        ([([1], [np.nan])], ["a"], "finite"),
        ([([1], [1])], [], "1 examples but 0 ids"),
    ],
)
def test_malformed_examples(pairs, ids, words):
    with pytest.raises(ValueError, match=words):
        TokenizedExamples.from_examples(pairs, ids)


def test_fingerprint_sees_every_part():
    examples = TokenizedExamples.from_examples([([1, 2], [0, 1]), ([3, 4], [0, 1])], ["a", "bc"])
    assert examples.fingerprint() == dataclasses.replace(examples, tokens=examples.tokens.copy()).fingerprint()
    changed = [
        dataclasses.replace(examples, tokens=examples.tokens + 1),
        dataclasses.replace(examples, weights=examples.weights * 2),
        dataclasses.replace(examples, offsets=np.array([0, 1, 4])),
        dataclasses.replace(examples, ids=["ab", "c"]),
    ]
    assert len({examples.fingerprint(), *(other.fingerprint() for other in changed)}) == 5


def test_group_dropped_most_frequent_first():
    dropped = [DroppedRow("1", "a"), DroppedRow("2", "b"), DroppedRow("3", "b")]
    assert [(reason, len(rows)) for reason, rows in group_dropped(dropped).items()] == [("b", 2), ("a", 1)]
