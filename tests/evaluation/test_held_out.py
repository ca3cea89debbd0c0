"""Held-out examples from prompt to scores: answers of a tiny model, told apart by the template of its checkpoint."""

import jax
import numpy as np
import pytest
from etils import epath

from sft_jax.data.conversations import Chat, Message, ToolCall
from sft_jax.data.records import Record
from sft_jax.evaluation import held_out
from sft_jax.evaluation.scoring import compare
from sft_jax.generation import Generated
from sft_jax.runs.restore import load_for_inference
from sft_jax.sharding import inference_mesh
from tests import tiny
from tests.data.rendering.chat_formats import FORMATS

CALL = Message("assistant", "", tool_calls=(ToolCall("weather", {"city": "Rome"}),))
RECORDS = [
    Record("a:1", Chat((Message("user", "2+2?"), Message("assistant", "4"))), {}),
    Record("a:2", Chat((Message("user", "Rome?"), CALL)), {}),
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """An untrained model with the template of Qwen 3."""
    directory = tiny.write_checkpoint(tmp_path_factory.mktemp("model"), num_hidden_layers=1)
    (directory / "chat_template.jinja").write_text(FORMATS["Qwen 3"].template)
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        return load_for_inference(str(directory), mesh, "float32")


def test_what_a_model_writes_is_scored_whole(loaded, tmp_path):
    task = held_out.Task(RECORDS, "exact_match", max_new_tokens=3, batch_size=8)
    references = held_out.references_of(loaded, task)
    with jax.set_mesh(inference_mesh(jax.devices())):
        written = held_out.generate_answers(loaded, task)
    answers = held_out.in_parts(loaded, task, written, references)
    scores = held_out.write_evaluation(
        epath.Path(tmp_path / "out"), task, answers, held_out.score_answers(task, answers)
    )
    assert [scores[name]["value"] for name in ("exact_match", "content_match", "calls_match")] == [0, 0, 0]
    ids = [loaded.renderer.tokenizer(reference.text, add_special_tokens=False).input_ids for reference in references]
    right = [Generated(np.asarray(tokens, np.int32), "", "stop") for tokens in ids]
    answers = held_out.in_parts(loaded, task, right, references)
    assert [outcome["exact_match"] for outcome in held_out.score_answers(task, answers)] == [True, True]
    assert answers.note() == ""


@pytest.mark.parametrize("scorer", ["exact_match", "json_extraction"])
def test_answers_that_are_calls_alone(loaded, tmp_path, scorer):
    """There are no contents to compare: the calls are scored, and compared with those of another evaluation."""
    task = held_out.Task(RECORDS[1:], scorer)
    references = held_out.references_of(loaded, task)
    right = loaded.renderer.tokenizer(references[0].text, add_special_tokens=False).input_ids
    for name, tokens in (("right", right), ("silent", [])):
        written = [Generated(np.asarray(tokens, np.int32), "", "stop")]
        answers = held_out.in_parts(loaded, task, written, references)
        outcomes = held_out.score_answers(task, answers)
        scores = held_out.write_evaluation(epath.Path(tmp_path / name), task, answers, outcomes)
        assert scores.keys() == {"examples", "exact_match", "calls_match"}
        assert scores["calls_match"]["value"] == (name == "right")
    first, second = held_out.comparable(epath.Path(tmp_path / "silent"), epath.Path(tmp_path / "right"))
    compared = compare(first, second, 0)
    assert {name: one.difference.value for name, one in compared.items()} == {"exact_match": 1, "calls_match": 1}


def test_references_that_a_scorer_cannot_read_are_named_before_anything_is_generated(loaded):
    with pytest.raises(ValueError, match="row a:1: json_extraction: the reference is not a JSON object"):
        held_out.references_of(loaded, held_out.Task(RECORDS, "json_extraction"))


def test_rows_without_an_answer_are_named_before_a_model_is_loaded():
    with pytest.raises(ValueError, match=r"a:3: a held-out row must end with the assistant's answer"):
        held_out.check_task(held_out.Task([Record("a:3", Chat((Message("user", "?"),)), {})], "exact_match"))
