"""What of special tokens is left in the text of ids."""

import pytest

from sft_jax.data.rendering.special_tokens import content_text, count_in_contents
from tests import tiny


@pytest.fixture
def tokenizer():
    made = tiny.tokenizer()
    made.add_tokens(["<|a|>", "<|b|>"], special_tokens=True)
    return made


def ids_of(tokenizer, *texts):
    return tokenizer.convert_tokens_to_ids(list(texts))


def test_special_tokens_are_left_out_but_for_those_that_are_kept(tokenizer):
    ids = ids_of(tokenizer, "x", "<|a|>", "y", "<|b|>")
    assert content_text(tokenizer, ids) == "xy"
    assert content_text(tokenizer, ids, ("<|b|>",)) == "xy<|b|>"
    count_in_contents(tokenizer, ["<|a|>"])
    assert content_text(tokenizer, ids) == "x<|a|>y"
    assert content_text(tokenizer, ids, ("<|b|>",)) == "x<|a|>y<|b|>"


def test_added_tokens_are_gone_through_once_and_again_when_there_are_more(tokenizer, monkeypatch):
    added, reads = type(tokenizer).added_tokens_decoder, []
    monkeypatch.setattr(
        type(tokenizer), "added_tokens_decoder", property(lambda self: reads.append(self) or added.fget(self))
    )
    ids = ids_of(tokenizer, "x", "<|a|>")
    assert content_text(tokenizer, ids) == "x"
    once = len(reads)
    assert [content_text(tokenizer, ids, kept) for kept in ((), ("<|a|>",)) * 5] == ["x", "x<|a|>"] * 5
    assert len(reads) == once
    tokenizer.add_tokens(["<|c|>"], special_tokens=True)
    assert content_text(tokenizer, ids_of(tokenizer, "x", "<|c|>")) == "x"
