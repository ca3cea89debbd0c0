"""Runs whose rows are longer than the positions the model knows, and those that lift that limit."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import transformers
from etils import epath

from configs import sft
from sft_jax import inference_flags
from sft_jax.data.conversations import Message
from sft_jax.data.reading import DEFAULT
from sft_jax.evaluation.measuring import Entry
from sft_jax.evaluation.methods import parse_methods
from sft_jax.evaluation.side_by_side import Setting, measure_methods
from sft_jax.exports.model import export_model
from sft_jax.exports.source import open_source
from sft_jax.generation import prepare
from sft_jax.options import TaskOptions, options_of
from sft_jax.preparation.run_data import load_data
from sft_jax.progress import silent
from sft_jax.runs.base import base_of, open_base
from sft_jax.runs.metric_log import read_metrics
from sft_jax.runs.restore import load_for_inference
from sft_jax.sharding import inference_mesh
from sft_jax.training import run
from sft_jax.training.held_out import Samples
from tests import tiny
from tests.models import families

POSITIONS = 100
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS, "vocab_size": 320}


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A directory with the tiny data, and a GPT-2 of 100 positions in the place of the tiny model."""
    root = tmp_path_factory.mktemp("learned")
    tiny.config(root)
    families.save(families.random_model(transformers.AutoConfig.for_model("gpt2", **GPT2)), root / "model")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_rows_of_the_batch_may_be_longer_than_the_positions(learned, packing):
    """Every step counts, and what is measured does not depend on how much padding there is."""
    found = {}
    for sequence_length in (POSITIONS, 256):
        config = tiny.config(
            learned, **{"data.sequence_length": sequence_length, "data.packing": packing, "duration": "3 steps"}
        )
        with config.unlocked():
            config.evaluation.samples, config.evaluation.sample_tokens = 1, 70
        directory = learned / f"{packing} {sequence_length}"
        run(config, directory)
        lines = read_metrics(directory / "metrics.jsonl")
        assert not any(line["train/skipped"] for line in lines if "train/skipped" in line)
        found[sequence_length] = [line["held_out/nll"] for line in lines if "held_out/nll" in line]
    assert np.isfinite(found[256]).all()
    assert found[256][0] == pytest.approx(found[POSITIONS][0], rel=1e-5)


def test_learned_positions_are_not_lifted(learned):
    with pytest.raises(
        ValueError, match=r"--config.model.max_positions=128: .* has a learned vector for each of its 100"
    ):
        run(tiny.config(learned, **{"model.max_positions": 128}), learned / "never")


def long_rows(root: Path, **settings):
    """A config whose model has 40 positions, with rows of some 60 tokens."""
    config = tiny.config(root, "full", **settings)
    fields = json.loads((root / "model" / "config.json").read_text())
    (root / "model" / "config.json").write_text(json.dumps(fields | {"max_position_embeddings": 40}))
    return config


def measured_by(loaded, records):
    """Answers of 400 tokens at most, and losses."""
    task = TaskOptions("held_out.jsonl", DEFAULT, max_new_tokens=400)
    entries, methods = [Entry("task", task, records)], parse_methods(["base"])
    options = options_of(sft.get_config()).evaluation
    return measure_methods(entries, methods, lambda is_tuned: loaded, Setting(options)).tasks["task"]["base"]


def short_prompts(records):
    """The same answers to a question that leaves room for some of them."""
    ask = lambda record: dataclasses.replace(record.example, messages=(Message("user", ""), record.conversation[-1]))
    return tuple(dataclasses.replace(record, example=ask(record)) for record in records)


def test_a_lifted_limit_goes_through_training_generation_evaluation_and_export(tmp_path):
    settings = {"duration": "1 steps", "evaluation.samples": 1, "evaluation.sample_tokens": 2}
    with pytest.raises(
        ValueError, match=r"train.jsonl:\d+ has \d+ tokens; the model knows 40 positions. .*max_positions"
    ):
        run(long_rows(tmp_path, **settings), tmp_path / "refused")
    config = long_rows(tmp_path, **settings, **{"model.max_positions": 300})
    run(config, tmp_path / "run")
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        loaded = load_for_inference(str(tmp_path / "run"), mesh, "float32")
        plain = load_for_inference(config.model.source, mesh, "float32")
        smaller = load_for_inference(config.model.source, mesh, "float32", max_positions=20)
        sizes = [one.model.config.max_positions for one in (loaded, plain, smaller)]
        assert sizes == [300, 40, 20]
        records = tuple(load_data(options_of(config)).held_out_records[:2])
        measured = measured_by(loaded, records)
        reasons = [line["finish_reason"] for line in measured.lines]
        assert set(reasons) <= {"stop", "max_positions"}
        if reasons == ["max_positions"] * 2:
            assert measured.prompt_tokens + measured.generated_tokens == 300
        assert all(outcome["loss_weight"] > 0 for outcome in measured.outcomes)
        with pytest.raises(ValueError, match=r"the prompt of held_out.jsonl:1 has \d+ tokens; the model knows 20 pos"):
            measured_by(smaller, records)
        with pytest.raises(ValueError, match=r"held_out.jsonl:\d has .* knows 20 positions. Measure without such rows"):
            measured_by(smaller, short_prompts(records))
        export_model(open_source(str(tmp_path / "run")), epath.Path(tmp_path / "out"), mesh, "float32", silent)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["max_position_embeddings"] == 300
    assert open_base(str(tmp_path / "out")).decoder == base_of(options_of(config).model).decoder
    with pytest.raises(ValueError, match=re.escape("must be at least 0")):
        run(tiny.config(tmp_path, **{"model.max_positions": -1}), tmp_path / "never")


def test_what_the_flag_says_reaches_the_model(tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr("sft_jax.runs.restore.load_for_inference", lambda *arguments: asked.update(given=arguments))
    flags = {"MATMUL": "float32", "WEIGHTS": "ema", "MAX_POSITIONS": 99, "MIX": 0.5}
    for name, value in flags.items():
        monkeypatch.setattr(inference_flags, name, type("Flag", (), {"value": value}))
    inference_flags.load("source", "mesh")
    assert asked["given"] == ("source", "mesh", "float32", "ema", 99, 0.5)
    inference_flags.load("source", "mesh", share=0.5)
    assert asked["given"] == ("source", "mesh", "float32", "ema", 99, 0.25)
    inference_flags.load("source", "mesh", share=0.0)  # what weights and mix say is of the result
    assert asked["given"] == ("source", "mesh", "float32", "trained", 99, 0.0)


def test_a_sample_without_room_says_so(tmp_path):
    """Training rows are cut to fit, prompts of samples are not."""
    settings = {"data.masking.too_long": "truncate_left", "data.sequence_length": 40, "data.fail_on": "never"}
    config = long_rows(tmp_path, **settings, **{"evaluation.samples": 3, "evaluation.sample_tokens": 2})
    turns = [("user", "word " * 30), ("assistant", "so"), ("user", "a"), ("assistant", "no")]
    long = {"messages": [{"role": role, "content": text} for role, text in turns]}
    short = {"messages": long["messages"][2:]}
    Path(config.data.held_out).write_text(f"{json.dumps(long)}\n{json.dumps(short)}\n")
    run(config, tmp_path / "run")
    mesh, data = inference_mesh(jax.devices()), load_data(options_of(config))
    with jax.set_mesh(mesh):
        loaded = load_for_inference(str(tmp_path / "run"), mesh, "float32")
        samples = Samples(loaded.model.config, data, options_of(config).evaluation)
        shown = samples(prepare(loaded.model, loaded.variables))
    assert re.search(
        r"\*\*answer\*\*: none, the prompt has \d+ tokens; the model knows 40 positions", shown["samples/1"]
    )
    assert "no" in shown["samples/1"].split("**reference**")[1]
    assert re.search(r"\*\*answer\*\*( \(cut\))?\n\n", shown["samples/2"])
