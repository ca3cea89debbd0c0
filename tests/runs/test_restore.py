"""A model for use from a run directory: the trained weights, the template, the base model it was trained on."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from sft_jax.models.variables import variables as variables_of
from sft_jax.runs.base import open_run
from sft_jax.runs.checkpoints import Checkpoints
from sft_jax.runs.restore import load_for_inference
from sft_jax.runs.workdir import WorkdirError
from sft_jax.sharding import inference_mesh
from sft_jax.sources import open_checkpoint
from sft_jax.training import run
from tests import tiny

TEMPLATE = """{% for m in messages %}<|im_start|>{{ m['role'] }}
{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}
{% else %}{{ m['content'] }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TOKENS = np.arange(3, 23, dtype=np.int32).reshape(2, 10)


def logits(source):
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        loaded = load_for_inference(str(source), mesh, "float32")
        return np.asarray(jax.jit(loaded.model.apply)(loaded.variables, TOKENS))


@pytest.fixture(scope="module", params=["full", "lora"])
def trained(request, tmp_path_factory):
    """A finished run of 6 steps with checkpoints, the last state that was in memory, and its config."""
    root = tmp_path_factory.mktemp("restore")
    config = tiny.config(root, request.param, **{"checkpoint.best_metric": "held_out/nll"})
    kept = {}
    run(config, root / "run", evaluators={"keep": lambda model, state: kept.update(model=model, state=state) or {}})
    return root, config, kept


def test_what_was_trained_is_what_is_loaded(trained):
    """Other layout, other execution, one device instead of eight: the same function, and no longer the base model's."""
    root, _, kept = trained
    state = kept["state"]
    variables = variables_of(state.trained, state.frozen, state.hyper)
    expected = np.asarray(jax.jit(kept["model"].apply)(jax.device_get(variables), TOKENS))
    found = logits(root / "run")
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    assert np.abs(found - logits(root / "model")).max() > 0.01 * np.abs(expected).max()


def test_kernels_are_read_in_the_dtype_of_products(trained):
    """Saved in float32, read in bfloat16: as if cast afterwards, bit for bit. Adapters stay as they are."""
    root, config, _ = trained
    mesh = inference_mesh(jax.devices())
    options = {"matmul_dtype": "bfloat16"}
    with jax.set_mesh(mesh):
        found = flatten_dict(load_for_inference(str(root / "run"), mesh, **options).variables, sep="/")
        saved = flatten_dict(open_run(str(root / "run")).variables("unrolled", mesh), sep="/")
    assert found.keys() == saved.keys()
    kernels = {path for path in found if path.startswith("params/") and path.endswith(("/kernel", "/head"))}
    full = config.adapter.method == "none"
    assert kernels
    for path, leaf in found.items():
        assert saved[path].dtype == np.float32
        assert leaf.dtype == (jnp.bfloat16 if path in kernels and full else np.float32)
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(saved[path].astype(leaf.dtype)))


def test_kernels_are_placed_in_the_dtype_of_products(trained, monkeypatch):
    """No array of a full run is placed in float32 to be cast on its device."""
    root, config, _ = trained
    placed = []
    restored = Checkpoints.restore_parts

    def seen(self, step, abstract):
        parts = restored(self, step, abstract)
        placed.extend(flatten_dict(parts["trained"], sep="/").items())
        return parts

    monkeypatch.setattr(Checkpoints, "restore_parts", seen)
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        load_for_inference(str(root / "run"), mesh, "bfloat16")
    kernels = {leaf.dtype for path, leaf in placed if path.endswith("/kernel")}
    assert kernels == ({jnp.dtype("bfloat16")} if config.adapter.method == "none" else set())


@pytest.mark.parametrize("mix", [0.0, 0.5])
def test_between_base_and_result_weights_are_read_in_float32(trained, mix):
    root, _, _ = trained
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        loaded = load_for_inference(str(root / "run"), mesh, "bfloat16", mix=mix)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.variables)} == {jnp.dtype("float32")}


def fingerprint(source, **options):
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        return load_for_inference(str(source), mesh, **{"matmul_dtype": "float32"} | options).fingerprint


def test_the_fingerprint_is_of_all_that_answers_follow_from(trained, tmp_path, monkeypatch):
    root, _, _ = trained
    shutil.copytree(root / "run", tmp_path / "run")
    first = fingerprint(tmp_path / "run")
    assert first == fingerprint(tmp_path / "run") == fingerprint(root / "run")
    others = [
        fingerprint(root / "run", mix=0.0),
        fingerprint(root / "run", max_positions=100),
        fingerprint(root / "run", matmul_dtype="bfloat16"),
        fingerprint(root / "model"),
    ]
    digests = tmp_path / "run" / "checkpoints" / "6" / "digests.json"
    digests.write_text(digests.read_text() + "\n")  # as of a run of the same config that other code trained
    others.append(fingerprint(tmp_path / "run"))
    monkeypatch.setattr("sft_jax.runs.restore.code_digest", lambda **where: "other code")
    others.append(fingerprint(root / "run"))
    assert len({first, *others}) == 1 + len(others)


def test_names_of_checkpoints(trained):
    root, _, _ = trained
    np.testing.assert_array_equal(logits(f"{root / 'run'}:6"), logits(f"{root / 'run'}:latest"))
    assert logits(f"{root / 'run'}:best").shape == (2, 10, tiny.HF_CONFIG["vocab_size"])
    with pytest.raises(ValueError, match=r"has no checkpoint of step 5; there are \["):
        logits(f"{root / 'run'}:5")


def test_another_base_model_is_refused(trained, tmp_path):
    """Adapters on other weights would answer, and nobody would know why so badly."""
    root, config, _ = trained
    shutil.copytree(root / "run", tmp_path / "run")
    tiny.write_checkpoint(tmp_path / "model", seed=7)
    fields = json.loads((tmp_path / "run" / "config.json").read_text())
    fields["model"]["source"] = str(tmp_path / "model")
    (tmp_path / "run" / "config.json").write_text(json.dumps(fields))
    assert open_checkpoint(tmp_path / "model").fingerprint != open_checkpoint(config.model.source).fingerprint
    with pytest.raises(WorkdirError, match="model changed since it started"):
        logits(tmp_path / "run")


def test_the_template_goes_with_the_run(tmp_path):
    """A template file of the user's own may be gone when the model is used."""
    file = tmp_path / "mine.jinja"
    file.write_text(TEMPLATE)
    config = tiny.config(tmp_path, duration="1 steps", **{"model.chat_template": str(file)})
    run(config, tmp_path / "run")
    file.unlink()
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        loaded = load_for_inference(str(tmp_path / "run"), mesh, "float32")
    assert loaded.renderer.chat_template == TEMPLATE


def test_a_run_starts_from_the_result_of_another(trained, tmp_path):
    """Adapters are merged; tokenizer and config come along; at step 0 the new run is where the old one ended."""
    root, _, _ = trained
    source = f"{root / 'run'}:6"
    config = tiny.config(tmp_path, duration="1 steps", **{"model.source": source, "optimizer.learning_rate": 0.0})
    run(config, tmp_path / "run")
    expected = logits(source)
    np.testing.assert_allclose(logits(tmp_path / "run"), expected, atol=2e-5 * np.abs(expected).max())
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["fingerprints"]["model"] != open_checkpoint(root / "model").fingerprint
    with pytest.raises(ValueError, match="revision=main is for hub names"):
        run(tiny.config(tmp_path, **{"model.source": source, "model.revision": "main"}), tmp_path / "other")


def test_a_template_that_is_gone_is_an_error(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text(TEMPLATE)
    run(tiny.config(tmp_path, duration="1 steps", **{"model.chat_template": str(file)}), tmp_path / "run")
    (tmp_path / "run" / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"chat_template\.jinja is missing"):
        logits(tmp_path / "run")
