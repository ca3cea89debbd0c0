"""Weights between a base and the result of a run: the ends bit for bit, the middle by hand, exports proven."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from etils import epath

from sft_jax.exports.adapter import export_adapter
from sft_jax.exports.directory import ExportError
from sft_jax.exports.model import export_model
from sft_jax.exports.source import check_format, open_source
from sft_jax.models.quantization import dequantized_tree
from sft_jax.runs.base import open_run
from sft_jax.runs.restore import load_for_inference
from sft_jax.sharding import inference_mesh
from sft_jax.training import run
from tests import tiny
from tests.models import reference

TOKENS = np.arange(3, 23, dtype=np.int32).reshape(2, 10)
RUNS = {
    "full": ("full", {"ema.decay": 0.5}),
    "last layer": ("full", {"trained.last_layers": 1}),
    "lora": ("lora", {}),
    "pissa": ("lora", {"adapter.method": "pissa"}),
    "dora": ("lora", {"adapter.method": "dora"}),
    "new tokens": ("lora", {"model.new_tokens": ("<|x|>",), "adapter.train_new_tokens": True}),
    "few bits": ("lora", {"precision.quantized": "int8"}),
    "schedule free": ("full", {"optimizer.name": "schedule_free", "optimizer.schedule": "constant"}),
}
OFTEN = ("full", "dora")
EVERY = [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
FAST = {"duration": "3 steps", "evaluation.every": "3 steps", "checkpoint.every": "3 steps"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("mix"), {}

    def finished(name):
        if name not in made:
            arg, overrides = RUNS[name]
            run(tiny.config(root, arg, **FAST | overrides), root / name)
            made[name] = root / name
        return made[name]

    return finished


def loaded(source, weights="trained", mix=1.0, devices=8):
    mesh = inference_mesh(jax.devices()[:devices])
    with jax.set_mesh(mesh):
        return load_for_inference(str(source), mesh, "float32", weights, mix=mix)


def logits(source, weights="trained", mix=1.0, devices=8):
    found = loaded(source, weights, mix, devices)
    with jax.set_mesh(inference_mesh(jax.devices()[:devices])):
        return np.asarray(jax.jit(found.model.apply)(found.variables, TOKENS))


def merged(source, weights="trained", mix=1.0):
    """The parameters, adapters merged into them, by path."""
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        return reference.flat(open_run(str(source), mix).params("unrolled", "float32", mesh, "none", weights))


def base_params(source):
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        found = open_run(str(source))
        precision = found.options.precision
        read = found.base.params("unrolled", precision.frozen, mesh, precision.quantized)
        return reference.flat(dequantized_tree(read))


@pytest.mark.parametrize("name", EVERY)
def test_the_ends_are_base_and_result_bit_for_bit(runs, name):
    source = runs(name)
    at_base = merged(source, mix=0.0)
    for path, leaf in base_params(source).items():
        np.testing.assert_array_equal(at_base[path], leaf, err_msg=path)
    result = load_variables(source, 1.0)
    with jax.set_mesh(inference_mesh(jax.devices())):
        plain = reference.flat(open_run(str(source)).variables("unrolled", inference_mesh(jax.devices())))
    assert result.keys() == plain.keys()
    for path, leaf in plain.items():
        np.testing.assert_array_equal(result[path], leaf, err_msg=path)


def load_variables(source, mix):
    return reference.flat(loaded(source, mix=mix).variables)


@pytest.mark.parametrize("name", ["full", "lora"])
def test_the_base_is_what_the_checkpoint_predicts(runs, name):
    source = runs(name)
    # On one device: adapters with a scale of 0 are still in the program, and where sums are split it splits others.
    at_base = logits(source, mix=0.0, devices=1)
    np.testing.assert_array_equal(at_base, logits(source.parent / "model", devices=1))
    assert np.abs(logits(source) - logits(source, mix=0.0)).max() > 0.01


@pytest.mark.parametrize("name", EVERY)
def test_what_lies_between(runs, name):
    """A quarter of the way, of each weight; and what is predicted with adapters beside the weights is the same."""
    source, way = runs(name), 0.25
    start, end, found = base_params(source), merged(source), merged(source, mix=way)
    moved = 0
    for path, leaf in found.items():
        expected = np.asarray(start[path], np.float64) + way * (np.asarray(end[path], np.float64) - start[path])
        np.testing.assert_allclose(leaf, expected, atol=2e-6, err_msg=path)
        moved += np.abs(end[path] - start[path]).max() > 1e-4
    assert moved
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        model = loaded(source).model.clone(adapter=None)
        params = open_run(str(source), way).params("unrolled", "float32", mesh)
        expected = np.asarray(jax.jit(model.apply)({"params": params}, TOKENS))
    np.testing.assert_allclose(logits(source, mix=way), expected, atol=2e-5 * np.abs(expected).max())


def test_of_an_average(runs):
    source = runs("full")
    average = merged(source, "ema")
    expected = {path: leaf + 0.5 * (average[path] - leaf) for path, leaf in base_params(source).items()}
    for path, leaf in merged(source, "ema", 0.5).items():
        np.testing.assert_allclose(leaf, expected[path], atol=1e-6, err_msg=path)


def test_names(runs):
    source = runs("full")
    assert loaded(source, mix=0.5).name == f"{source}:3 (mix 0.5)"
    assert loaded(source, "ema", 0.5).name == f"{source}:3 (mix 0.5) (ema)"
    assert loaded(source).name == f"{source}:3"


@pytest.mark.parametrize("mix", [-0.1, 1.1, float("nan")])
def test_weights_beyond_the_ends_are_refused(runs, mix):
    with pytest.raises(ValueError, match=rf"--mix={mix} must lie between 0 \(the base\) and 1"):
        loaded(runs("full"), mix=mix)


def test_a_pretrained_checkpoint_has_no_result(runs):
    source = runs("full").parent / "model"
    for opened in (lambda: loaded(source, mix=0.5), lambda: open_source(str(source), mix=0.5)):
        with pytest.raises(ValueError, match=r"--mix=0\.5 is for runs"):
            opened()


def exported(source, out, kind, mix):
    """The directory, after its format was checked as the command does."""
    mesh, silent = inference_mesh(jax.devices()), lambda *_: lambda *_: None
    opened = open_source(str(source), mix=mix)
    check_format(opened, kind)
    with jax.set_mesh(mesh):
        return (export_adapter if kind == "peft" else export_model)(opened, epath.Path(out), mesh, "float32", silent)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "lora", "dora", "new tokens"])
def test_an_export_is_what_is_measured(runs, name, tmp_path):
    source, kind = runs(name), "hf" if name == "full" else "merged"
    assert exported(source, tmp_path / "out", kind, 0.5).drift.relative < 1e-4
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        found = model(input_ids=torch.from_numpy(TOKENS).long()).logits.numpy()
    np.testing.assert_allclose(found, logits(source, mix=0.5), atol=1e-4)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"# {name}, step 3, mix 0.5\n" in card
    assert "base + 0.5 x (result - base)" in card
    assert "not of these weights between it and the base" in card


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "pissa"])
def test_an_adapter_with_a_part_of_its_update(runs, name, tmp_path):
    source = runs(name)
    exported(source, tmp_path / "out", "peft", 0.5)
    whole = {"lora": 8.0, "pissa": 16.0}[name]
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["lora_alpha"] == 0.5 * whole
    np.testing.assert_allclose(logits(tmp_path / "out"), logits(source, mix=0.5), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "mix", "message"), [("lora", 0.0, "is its base"), ("dora", 0.5, "is no dora adapter")]
)
def test_what_is_no_adapter_is_refused_and_merged_as_advised(runs, name, mix, message, tmp_path):
    with pytest.raises(ExportError, match=rf"{message}.*; give --format=merged"):
        exported(runs(name), tmp_path / "out", "peft", mix)
    assert exported(runs(name), tmp_path / "out", "merged", mix).drift.relative < 1e-4


def test_a_mixed_adapter_is_no_whole_model(runs):
    with pytest.raises(ExportError, match=r"\(mix 0\.5\) is trained beside frozen weights \(dora\): give .*=merged"):
        check_format(open_source(str(runs("dora")), mix=0.5), "hf")
