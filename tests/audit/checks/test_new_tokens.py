"""New tokens in the data: counted by example, and said where one ends a turn in the middle of a content."""

import pytest

from sft_jax.audit.checks import CheckedData
from sft_jax.audit.checks.new_tokens import ends_in_contents, new_tokens
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.data.rendering.special_tokens import count_in_contents
from sft_jax.data.tokenizing import tokenize_records


@pytest.fixture
def looked_at(byte_tokenizer, chatml, records):
    """A checked of rendered (question, answer) pairs."""

    def make(*pairs, counting=("<|tool|>", "<|im_end|>")):
        tokenizer = byte_tokenizer("<|im_start|>", "<|im_end|>", "<|tool|>", "<|never|>", chat_template=chatml)
        count_in_contents(tokenizer, counting)
        renderer, made = ConversationRenderer(tokenizer), records(*pairs)
        examples, _ = tokenize_records(made, renderer, 500)
        added = ("<|tool|>", "<|im_end|>", "<|never|>")
        return CheckedData(made, examples, tokenizer=tokenizer, stop_ids=renderer.stop_ids, new_tokens=added)

    return make


PAIRS = (("a<|tool|>", "b"), ("c", "<|tool|><|tool|>d"), ("e", "f"))


def test_examples_with_each(looked_at, shown):
    tool, end, never = new_tokens(looked_at(*PAIRS))
    assert tool.title == (
        "The new token '<|tool|>' (id 260) stands in 2 of 3 examples, trained in 1; 2 rows spell it in contents"
    )
    assert tool.numbers == {"token": "<|tool|>", "id": 260, "examples": 2, "trained": 1, "in_contents": 2}
    assert shown(tool) == ["a:1", "a:2"]
    assert (end.numbers["examples"], end.numbers["trained"], end.numbers["in_contents"]) == (3, 3, 0)
    assert (never.numbers["examples"], never.count) == (0, 0)


def test_text_is_said_to_be_text(looked_at):
    tool, _, _ = new_tokens(looked_at(*PAIRS, counting=()))
    assert tool.title.endswith("stands in 0 of 3 examples, trained in 0; 2 rows spell it in contents, where it is text")


def test_ends_of_turns_in_contents(looked_at, shown):
    assert ends_in_contents(looked_at(*PAIRS)) == []
    pairs = (*PAIRS, ("how does ChatML end?", "with <|im_end|>, always"))
    (seen,) = ends_in_contents(looked_at(*pairs))
    assert (seen.count, shown(seen)) == (1, ["a:4"])
    assert "<|im_end|> in: " in seen.examples[0].text
    assert "--config.model.new_tokens_in_contents=False" in seen.advice
    assert ends_in_contents(looked_at(*pairs, counting=())) == []


def test_without_new_tokens_nothing_is_said(checked):
    assert new_tokens(checked(("q", "a"))) == ends_in_contents(checked(("q", "a"))) == []
