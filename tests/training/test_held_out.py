"""Samples of a run: the prompts of held-out conversations, with the tools they may call."""

import pytest

from sft_jax.data.conversations import Chat, Message, Segment, Segments, ToolCall
from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.training.held_out import last_answer, split_prompt
from tests.data.rendering.chat_formats import FORMATS

ASK, ANSWER = Message("user", "Q"), Message("assistant", "A")


def test_prompts_show_tools():
    tokenizer = FORMATS["Qwen 2.5"].tokenizer()
    tool = {"type": "function", "function": {"name": "f", "description": "D", "parameters": {}}}
    ids, question, answer = split_prompt(
        Record("a:1", Chat((ASK, ANSWER, ASK, ANSWER), (tool,)), {}), ConversationRenderer(tokenizer)
    )
    text = tokenizer.decode(ids)
    assert '<tools>\n{"type": "function"' in text
    assert text.endswith("A<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n")
    assert (question, answer) == ("Q", "A")


def test_references_are_whole_answers():
    renderer = ConversationRenderer(FORMATS["Qwen 3"].tokenizer())
    calling = Message("assistant", "", reasoning="R", tool_calls=(ToolCall("f", {"a": 1}),))
    _, question, answer = split_prompt(Record("a:1", Chat((ASK, calling)), {}), renderer)
    assert question == "Q"
    assert answer == '<think>\nR\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (Chat((ASK, ANSWER)), 1),
        (Chat((ASK, ANSWER, ASK, ANSWER, ASK)), 3),
        (Chat((ASK,)), 0),
        (Chat((ANSWER, ASK)), 0),
        (Segments((Segment("text", 1.0),)), 0),
    ],
)
def test_rows_without_an_answer_to_a_question_give_no_sample(example, expected):
    assert last_answer(Record("a:1", example, {})) == expected
