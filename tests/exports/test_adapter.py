"""The adapter of a run, exported: what is in the directory, that `peft` loads it, and what is refused."""

import dataclasses
import json

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from etils import epath

from sft_jax.exports import adapter
from sft_jax.exports.adapter import base_note, export_adapter
from sft_jax.exports.directory import ExportError
from sft_jax.exports.model import export_model
from sft_jax.exports.subject import open_subject
from sft_jax.models.peft_loading import load_peft_adapter
from sft_jax.training import run
from sft_jax.training.restore import load_for_inference
from sft_jax.training.sharding import inference_mesh
from tests import tiny
from tests.command_line import flags_in
from tests.models import reference

QUIET = {"evaluation.every": "0 steps", "checkpoint.best_metric": ""}


def silent(title, total):
    return lambda done, in_all: None


def trained(tmp_path, **settings):
    """A run directory with an adapter of every projection after two steps."""
    run(tiny.config(tmp_path, "lora", duration="2 steps", **QUIET, **settings), tmp_path / "run")
    return tmp_path / "run"


def export(directory, out, **settings):
    mesh = inference_mesh()
    with jax.set_mesh(mesh):
        return export_adapter(open_subject(str(directory)), epath.Path(out), mesh, "source", silent, **settings)


@pytest.mark.parametrize("method", ["pissa", "dora"])
def test_an_exported_adapter_is_the_same_in_peft(method, tmp_path):
    directory, out = trained(tmp_path, **{"adapter.method": method}), tmp_path / "out"
    exported = export(directory, out)
    assert exported.dtype == "float32"
    assert exported.drift.logits < 1e-4
    assert set(exported.files) >= {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "golden.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    said = json.loads((out / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == str(tmp_path / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(said["base_model_name_or_path"])
    wrapped = peft.PeftModel.from_pretrained(model, out).eval()
    ids = np.asarray([json.loads((out / "golden.json").read_text())["ids"]])
    with torch.no_grad():
        theirs = wrapped(input_ids=torch.from_numpy(ids)).logits.numpy()
    mesh = inference_mesh()
    with jax.set_mesh(mesh):
        loaded = load_for_inference(str(directory), mesh, "float32")
        ours = np.asarray(reference.jit(loaded.model.apply)(loaded.variables, ids))
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
    last = torch.log_softmax(torch.from_numpy(theirs[0, -1]), -1)
    for token in json.loads((out / "golden.json").read_text())["next_tokens"]:
        assert abs(float(last[token["id"]]) - token["log_probability"]) < 1e-4
    assert "PeftModel.from_pretrained" in (out / "README.md").read_text()


def test_what_reads_back_as_something_else_is_refused(lora, tmp_path, monkeypatch):
    """A reader of PEFT directories that finds other updates, here twice as large, is noticed in the logits."""

    def twice(*arguments):
        loaded = load_peft_adapter(*arguments)
        return dataclasses.replace(
            loaded, settings=dataclasses.replace(loaded.settings, alpha=2 * loaded.settings.alpha)
        )

    monkeypatch.setattr(adapter, "load_peft_adapter", twice)
    with pytest.raises(ExportError, match="storing the adapter in float32 moves the logits"):
        export(lora, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert export(lora, tmp_path / "out").drift.logits < 1e-4  # a tied embedding among others


def test_what_is_refused_leaves_nothing(tmp_path):
    tiny.write_checkpoint(tmp_path / "model")
    mesh = inference_mesh()
    with pytest.raises(ExportError, match="has no adapter, so there is nothing for --format=peft"):
        export_adapter(open_subject(str(tmp_path / "model")), epath.Path(tmp_path / "out"), mesh, "source", silent)
    assert not (tmp_path / "out").exists()


def test_a_base_that_is_a_run_is_exported_as_the_note_says(tmp_path):
    run(tiny.config(tmp_path, "full", duration="1 steps", **QUIET), tmp_path / "first")
    assert base_note(open_subject(str(tmp_path / "first"))) == ""
    directory = trained(tmp_path, **{"model.source": str(tmp_path / "first")})
    export(directory, tmp_path / "out")
    note = base_note(open_subject(str(directory)))
    assert note in (tmp_path / "out" / "README.md").read_text()
    given = dict(flag.removeprefix("--").split("=") for flag in flags_in(note))
    assert (given["out"], given["format"]) == ("BASE", "hf")
    mesh = inference_mesh()
    with jax.set_mesh(mesh):
        export_model(open_subject(given["checkpoint"]), epath.Path(tmp_path / "BASE"), mesh, "source", silent)
        loaded = load_for_inference(str(directory), mesh, "float32")
        ids = np.arange(3, 30)[None]
        ours = np.asarray(reference.jit(loaded.model.apply)(loaded.variables, ids))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "BASE", dtype=torch.float32)
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(model, tmp_path / "out").eval()(input_ids=torch.from_numpy(ids)).logits
    np.testing.assert_allclose(theirs.numpy(), ours, atol=1e-3)
