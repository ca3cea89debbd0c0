"""Measuring in a run: batches one after the other without waiting, and the prompts of held-out conversations."""

import dataclasses

import jax
import numpy as np
import pytest

from sft_jax.data.conversations import Chat, Message, Segment, Segments, ToolCall
from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.options import options_of
from sft_jax.preparation.run_data import load_data
from sft_jax.sharding import make_mesh
from sft_jax.training.held_out import held_out_settings, last_answer, mean_metrics, split_prompt
from sft_jax.training.setup import step_settings
from sft_jax.training.state import TrainState
from tests import tiny
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


def test_the_next_batch_is_dispatched_before_metrics_are_read():
    """And what is read is added up in float64, in the order of the batches: 1e9 + 1 is no float32."""
    happened = []

    class OnDevice:
        def __init__(self, number, value):
            self.number, self.value = number, np.float32(value)

        def __array__(self, *_, **__):
            happened.append(f"read {self.number}")
            return np.asarray(self.value)

    values = [1e9, 1, 1, 1]

    def step(state, batch):
        number = sum(name.startswith("dispatch") for name in happened)
        happened.append(f"dispatch {number}")
        return {"loss": (OnDevice(number, values[number]), np.float32(1))}

    mesh = make_mesh({}, jax.devices()[:1])
    means = mean_metrics(step, object.__new__(TrainState), [{}] * 4, mesh)
    assert happened == [
        *("dispatch 0", "dispatch 1", "read 0", "dispatch 2", "read 1", "dispatch 3", "read 2", "read 3"),
    ]
    assert means == {"loss": (1e9 + 3) / 4}


@pytest.mark.parametrize(
    ("sequences", "devices", "slots"), [(8, 1, 5), (8, 8, 40), (3, 8, 40), (16, 8, 20), (1, 1, 40)]
)
def test_the_heads_chunk_follows_the_batch_that_is_measured(tmp_path, sequences, devices, slots):
    """A training step has 32 sequences, an evaluation as many as it says, rounded up to the devices."""
    config = tiny.config(
        tmp_path,
        **{
            "batch.sequences": 32,
            "evaluation.batch_sequences": sequences,
            "objective.head_chunk_tokens": 40,
        },
    )
    options, mesh = options_of(config), make_mesh({"fsdp": -1}, jax.devices()[:devices])
    train, data = step_settings(options, mesh), load_data(options)
    assert train.head_chunk == max(1, 40 // (32 // devices))
    assert held_out_settings(options, train, data, mesh) == dataclasses.replace(train, head_chunk=slots)
    everything = dataclasses.replace(options, objective=dataclasses.replace(options.objective, head_chunk_tokens=0))
    assert held_out_settings(everything, train, data, mesh).head_chunk == 0
