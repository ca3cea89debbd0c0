"""Reciting equals greedy decoding from the first half of the answer."""

import jax
import numpy as np
import pytest

from sft_jax.data.conversations import Chat, Message, ToolCall
from sft_jax.data.reading import DEFAULT
from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.evaluation.requests import Judged, Response
from sft_jax.evaluation.tasks.reciting import Reciting
from sft_jax.generation import loglikelihoods, prepare
from sft_jax.models import load_pretrained
from sft_jax.options import TaskOptions
from tests import tiny

RECORD = Record("a:1", Chat((Message("user", "sea?"), Message("assistant", "blue"))), {})
RENDERER = ConversationRenderer(tiny.tokenizer())
OPTIONS = TaskOptions("rows.jsonl", DEFAULT, "recite")


@pytest.mark.parametrize(
    ("tokens", "tail", "verbatim"),
    [(6, 3, True), (6, 2, False), (5, 2, True), (5, 1, False), (6, 6, True)],
)
def test_the_second_half_must_be_the_models_own(tokens, tail, verbatim):
    task = Reciting(OPTIONS, [RECORD], RENDERER)
    outcome = task.score(RECORD, [Response((Judged(-1.0, tokens, tail),), 3, 0.0)])
    assert outcome == {"verbatim": verbatim, "recited_share": tail / tokens}


def test_answers_too_short_to_tell_have_no_value():
    task = Reciting(OPTIONS, [RECORD], RENDERER)
    assert task.score(RECORD, [Response((Judged(-1.0, 3, 3),), 3, 0.0)]) == {"verbatim": None, "recited_share": None}


def test_answers_that_are_no_text_are_refused():
    call = Message("assistant", "", tool_calls=(ToolCall("weather", {}),))
    with pytest.raises(ValueError, match="a:3: only answers that are text alone can be recited"):
        Reciting(OPTIONS, [Record("a:3", Chat((Message("user", "?"), call)), {})], RENDERER)


def test_the_tail_is_what_greedy_decoding_writes(tmp_path):
    model, params = load_pretrained(tiny.write_checkpoint(tmp_path / "model", num_hidden_layers=1))
    rng = np.random.default_rng(0)
    prompt, answer = rng.integers(3, 250, 9).astype(np.int32), list(rng.integers(3, 250, 4))
    apply = jax.jit(lambda ids: model.apply({"params": params}, ids))
    for _ in range(5):
        answer.append(int(apply(np.asarray([[*prompt, *answer]], np.int32))[0, -1].argmax()))
    (found,) = loglikelihoods(prepare(model, {"params": params}), [prompt], [[np.asarray(answer, np.int32)]])
    assert found[0].greedy_tail == 5


def test_rows_without_an_answer_are_named():
    with pytest.raises(ValueError, match="a:2: a held-out row must end with the assistant's answer"):
        Reciting(OPTIONS, [Record("a:2", Chat((Message("user", "sea?"),)), {})], RENDERER)


def test_the_answer_is_asked_about():
    (request,) = Reciting(OPTIONS, [RECORD], RENDERER).requests(RECORD)
    assert request.continuations == ("blue",)
    assert [message.role for message in request.prompt] == ["user"]
