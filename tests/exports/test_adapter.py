"""The adapter of a run, exported: what is in the directory, that `peft` loads it, and what is refused."""

import dataclasses
import json
import re
import shlex
import shutil

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
from sft_jax.exports.source import ExportSource, check_format, open_source
from sft_jax.models.peft_loading import load_peft_adapter
from sft_jax.runs.metric_log import read_metrics
from sft_jax.runs.restore import load_for_inference
from sft_jax.runs.workdir import WorkdirError
from sft_jax.sharding import inference_mesh
from sft_jax.training import run
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
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        return export_adapter(open_source(str(directory)), epath.Path(out), mesh, "source", silent, **settings)


@pytest.mark.slow
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
    mesh = inference_mesh(jax.devices())
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


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_numbers_that_a_dtype_does_not_hold(lora, tmp_path):
    class Large(ExportSource):
        def variables(self, mesh):
            tree = super().variables(mesh)
            large = lambda path, leaf: leaf * 1e12 if path[-1].key == "b" else leaf
            return tree | {"adapters": jax.tree_util.tree_map_with_path(large, tree["adapters"])}

    source, mesh = Large(**vars(open_source(str(lora)))), inference_mesh(jax.devices())
    export_as = lambda dtype: export_adapter(source, epath.Path(tmp_path / "out"), mesh, dtype, silent)
    with jax.set_mesh(mesh):
        with pytest.raises(ExportError, match=r"_B has numbers that are not finite as float16") as error:
            export_as("float16")
        (flag,) = flags_in(str(error.value))
        assert export_as(flag.removeprefix("--dtype=")).dtype == "float32"


def test_what_is_refused_leaves_nothing(tmp_path):
    tiny.write_checkpoint(tmp_path / "model")
    mesh = inference_mesh(jax.devices())
    with pytest.raises(ExportError, match="has no adapter, so there is nothing for --format=peft"):
        export_adapter(open_source(str(tmp_path / "model")), epath.Path(tmp_path / "out"), mesh, "source", silent)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "whole"), [("full", "hf"), ("lora", "merged"), ("PEFT directory", "hf")])
def test_a_base_that_peft_does_not_load_is_exported_as_the_note_says(kind, whole, request, tmp_path):
    first = request.getfixturevalue("full" if kind == "full" else "lora")
    assert base_note(open_source(str(first))) == ""
    if kind == "PEFT directory":
        export(first, tmp_path / "first")
        first = tmp_path / "first"
    directory = trained(tmp_path, **{"model.source": str(first)})
    export(directory, tmp_path / "out")
    note = base_note(open_source(str(directory)))
    assert note in (tmp_path / "out" / "README.md").read_text()
    given = dict(flag.removeprefix("--").split("=") for flag in flags_in(note))
    assert (given["out"], given["format"]) == ("BASE", whole)
    check_format(open_source(given["checkpoint"]), given["format"])
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        export_model(open_source(given["checkpoint"]), epath.Path(tmp_path / "BASE"), mesh, "source", silent)
        loaded = load_for_inference(str(directory), mesh, "float32")
        ids = np.arange(3, 30)[None]
        ours = np.asarray(reference.jit(loaded.model.apply)(loaded.variables, ids))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "BASE", dtype=torch.float32)
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(model, tmp_path / "out").eval()(input_ids=torch.from_numpy(ids)).logits
    np.testing.assert_allclose(theirs.numpy(), ours, atol=1e-3)


def held_out(directory):
    """Held-out losses of a run, in order."""
    lines = read_metrics(directory / "metrics.jsonl")
    return [line["held_out/nll"] for line in lines if "held_out/nll" in line]


def test_training_goes_on_from_the_adapter_itself_as_advised(tmp_path):
    """A run begins with its export; the exports of that run have all of it, and need its directory no more."""
    settings = {"evaluation.every": "2 steps", "checkpoint.best_metric": ""}
    first = run(tiny.config(tmp_path, "lora", duration="2 steps", **settings), tmp_path / "a run").step
    with pytest.raises(WorkdirError, match="to train on the adapter itself: ") as error:
        run(tiny.config(tmp_path, "lora", duration=f"{2 * first} steps", **settings), tmp_path / "a run")
    command = re.search(r"python -m sft_jax\.export (.*), then (--\S+)=ADAPTER", str(error.value))
    given = dict(word.removeprefix("--").split("=") for word in shlex.split(command[1]))
    assert given == {"checkpoint": str(tmp_path / "a run"), "format": "peft", "out": "ADAPTER"}
    export(given["checkpoint"], tmp_path / "ADAPTER")

    next_one = tiny.config(tmp_path, "lora", duration="2 steps", **settings).unlock()
    (section, field) = command[2].removeprefix("--config.").split(".")
    next_one[section][field] = str(tmp_path / "ADAPTER")
    run(next_one.lock(), tmp_path / "next")
    (*_, ended), (began, *_, later) = held_out(tmp_path / "a run"), held_out(tmp_path / "next")
    assert began == pytest.approx(ended, abs=1e-5)
    assert abs(later - began) > 1e-4

    shutil.rmtree(tmp_path / "ADAPTER")
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        loaded = load_for_inference(str(tmp_path / "next"), mesh, "float32")
        ids = np.arange(3, 30)[None]
        ours = np.asarray(reference.jit(loaded.model.apply)(loaded.variables, ids))
        export_model(open_source(str(tmp_path / "next")), epath.Path(tmp_path / "whole"), mesh, "source", silent)
    export(tmp_path / "next", tmp_path / "out")
    said = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == str(tmp_path / "model")
    base, whole = (transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("model", "whole"))
    for model in (peft.PeftModel.from_pretrained(base, tmp_path / "out").eval(), whole.eval()):
        with torch.no_grad():
            np.testing.assert_allclose(model(input_ids=torch.from_numpy(ids)).logits.numpy(), ours, atol=1e-4)
    for name in ("out", "whole"):
        card = (tmp_path / name / "README.md").read_text()
        assert '"initial": "ADAPTER"' in card
        assert str(tmp_path) not in card
