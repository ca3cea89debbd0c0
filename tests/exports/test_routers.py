"""Runs of mixtures whose routers have corrections: no run changes them, and they keep their bits wherever they go."""

import json

import jax
import numpy as np
import pytest
from rich.console import Console
from safetensors import safe_open

from sft_jax.models.variables import is_buffer
from sft_jax.runs.restore import load_for_inference
from sft_jax.sharding import inference_mesh
from sft_jax.training import run
from tests import tiny
from tests.exports.conftest import export, in_torch, torch_logits
from tests.models import families, reference

NAME = "mlp.gate.e_score_correction_bias"
# Weight decay for whatever matches, and parameters whose updates are rounded: corrections would move.
FULL = {
    "duration": "6 steps",
    "precision.params": "bfloat16",
    "optimizer.groups": (".*: weight_decay=1",),
    "ema.decay": 0.5,
    "mesh.expert": 2,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A tiny GLM whose second and third layers have experts."""
    made = tmp_path_factory.mktemp("routers")
    families.save(families.torch_model("glm4_moe"), made / "model")
    tiny.tokenizer().save_pretrained(made / "model")
    tiny.write_rows(made / "train.jsonl", 48)
    tiny.write_rows(made / "held_out.jsonl", 12, seed=1)
    return made


@pytest.fixture(scope="module")
def full(root):
    """A run over all weights that was interrupted and went on, and what it showed."""
    config = tiny.config(root, "full", **FULL)
    run(config, root / "full", stop_after=2)
    with (root / "shown.txt").open("w") as file:
        run(config, root / "full", console=Console(file=file, width=120))
    return root / "full", (root / "shown.txt").read_text()


def corrections(directory):
    with safe_open(directory / "model.safetensors", "np") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name.endswith(NAME)}  # noqa: SIM118


def loaded(source, weights="trained", mix=1.0):
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        return reference.flat(load_for_inference(str(source), mesh, "float32", weights, mix=mix).variables["params"])


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"weights": "ema"}, {"mix": 0.5}])
def test_a_full_run_leaves_corrections_as_they_are(root, full, how):
    workdir, shown = full
    assert "correction_bias" not in shown  # nothing is said of an array without a gradient
    before, after = loaded(root / "model"), loaded(workdir, **how)
    still = {path for path in before if np.array_equal(after[path], before[path])}
    assert still == {f"layers_{layer}/experts/correction_bias" for layer in (1, 2)}
    assert still == {path for path in before if is_buffer(path)}


@pytest.mark.slow
def test_exports_hold_corrections_in_float32(root, full, tmp_path):
    workdir, _ = full
    export(workdir, tmp_path / "out", dtype="bfloat16", max_drift=1.0)
    before, after = corrections(root / "model"), corrections(tmp_path / "out")
    assert before.keys() == after.keys() == {f"model.layers.{layer}.{NAME}" for layer in (1, 2)}
    for name, tensor in before.items():
        assert after[name].dtype == np.float32
        np.testing.assert_array_equal(after[name], tensor)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_nextn_predict_layers"] == 0
    in_torch(tmp_path / "out")


@pytest.mark.slow
def test_an_adapter_beside_a_base_in_bfloat16(root, tmp_path):
    """The base is rounded, and corrections are not; merged, torch predicts the same."""
    run(tiny.config(root, "lora", **{"duration": "3 steps", "precision.frozen": "bfloat16"}), tmp_path / "lora")
    after = loaded(tmp_path / "lora")
    for path, leaf in loaded(root / "model").items():
        if is_buffer(path):
            np.testing.assert_array_equal(after[path], leaf)
    export(tmp_path / "lora", tmp_path / "out")
    ids = reference.tokens(2, 9)
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        model = load_for_inference(str(tmp_path / "lora"), mesh, "float32")
        ours = reference.apply(model.model, model.variables, ids)
    np.testing.assert_allclose(ours, torch_logits(tmp_path / "out", ids), atol=1e-4)
