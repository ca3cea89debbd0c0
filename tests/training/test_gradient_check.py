"""Gradients of micro-batches are compared with those of one before a run trains on accelerators."""

import dataclasses
import json

import jax
import optax
import pytest

from sft_jax.models.config import DecoderConfig
from sft_jax.models.lookup import LANES
from sft_jax.options import options_of
from sft_jax.runs.base import base_of
from sft_jax.sharding import make_mesh
from sft_jax.training import gradient_check, run
from sft_jax.training.gradient_check import WrongGradientError, gradient_differences, small, tolerance
from sft_jax.training.setup import make_model, step_settings
from sft_jax.training.stacked import run_stacked
from tests import tiny

PARTS = {"batch.micro_batches": 2, "batch.sequences": 16}


def differences(root, arg="full", **overrides):
    config = tiny.config(root, arg, **PARTS | overrides)
    options = options_of(config)
    base, mesh = base_of(options.model), make_mesh(options.mesh, jax.devices())
    model = make_model(options, base.decoder, mesh, base.new_token_ids)
    with jax.set_mesh(mesh):
        return options, gradient_differences(options, base, model, step_settings(options, mesh), mesh)


def lose_a_micro_batch(monkeypatch):
    """Accumulation that sees only half of each batch."""

    def halved(function, argnums, microbatch_size):
        return lambda *arguments: function(*(jax.tree.map(lambda x: x[:microbatch_size], each) for each in arguments))

    monkeypatch.setattr(optax.microbatching, "microbatch", halved)


def wrong_scatter(monkeypatch):
    """What was seen on TPUs: right, but for the gradient of what is looked up, of which some rows are lost."""
    microbatch = optax.microbatching.microbatch

    def broken(function, **how):
        def call(*arguments):
            metrics, gradient = microbatch(function, **how)(*arguments)
            rows = gradient["params"]["embedding"]
            return metrics, gradient | {"params": gradient["params"] | {"embedding": rows.at[::8].set(0)}}

        return call

    monkeypatch.setattr(optax.microbatching, "microbatch", broken)


BFLOAT16 = {"precision.matmul": "bfloat16", "precision.activations": "bfloat16"}
RUNS = {
    "full": ("full", {}),
    "full, bfloat16, scanned": ("full", BFLOAT16 | {"execution.layer_layout": "scan", "execution.remat": "full"}),
    "adapters with dropout, on few bits": ("lora", {"adapter.dropout": 0.1, "precision.quantized": "int8"}),
    "last layer, near the base": ("full", {"trained.last_layers": 1, "objective.kl_to_base": 0.1}),
    "a mesh of all axes": ("full", {"mesh.replica": 2, "mesh.fsdp": 2, "mesh.tensor": 2}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_right_gradients_pass(tmp_path, name):
    arg, overrides = RUNS[name]
    options, found = differences(tmp_path, arg, **overrides)
    assert found
    assert max(found.values()) <= tolerance(options) / 2, "rounding does not come near the bound"


@pytest.mark.parametrize("break_it", [lose_a_micro_batch, wrong_scatter])
@pytest.mark.parametrize("overrides", [{}, BFLOAT16], ids=["float32", "bfloat16"])
def test_wrong_gradients_are_found(tmp_path, monkeypatch, break_it, overrides):
    break_it(monkeypatch)
    options, found = differences(tmp_path, **overrides)
    wrong = {path for path, value in found.items() if value > tolerance(options)}
    assert "params/embedding" in wrong
    assert (len(wrong) == 1) == (break_it is wrong_scatter)


def test_a_run_stops_before_its_first_step_and_goes_on_as_advised(tmp_path, monkeypatch):
    """As on an accelerator, which the CPU here is taken for; with one micro-batch nothing is accumulated."""
    lose_a_micro_batch(monkeypatch)
    monkeypatch.setattr(gradient_check, "platform_of", lambda mesh: "tpu")
    with pytest.raises(WrongGradientError, match=r"--config\.batch\.micro_batches=2: on cpu .* in \d+ of \d+ param"):
        run(tiny.config(tmp_path, **PARTS), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["state"] == "failed"
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    advised = tiny.config(tmp_path, **{"batch.micro_batches": 1, "batch.sequences": 8, "duration": "1 steps"})
    assert run(advised, tmp_path / "other").step == 1


def test_cpus_are_not_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(gradient_check, "gradient_differences", None)
    assert run(tiny.config(tmp_path, **PARTS, duration="1 steps"), tmp_path / "run").step == 1


def test_the_small_model_has_a_layer_of_each_kind():
    gemma = DecoderConfig(
        vocab_size=262144,
        num_layers=6,
        model_dim=2304,
        num_heads=8,
        num_kv_heads=4,
        head_dim=256,
        ffn_dim=9216,
        layer_windows=(4096, 4096, 0, 4096, 4096, 0),
        local_rope_theta=1e4,
    )
    made = small(gemma, devices=1)
    assert (made.num_layers, made.layer_windows, made.model_dim, made.head_dim) == (2, (128, 0), 512, 256)
    alike = dataclasses.replace(gemma, layer_windows=(), local_rope_theta=0.0, num_layers=6)
    assert (small(alike, 1).num_layers, small(alike, 1).layer_windows) == (2, ())


@pytest.mark.parametrize(("devices", "width"), [(1, 512), (4, 512), (16, 2048), (64, 4096)])
def test_the_small_model_looks_up_as_the_large_one_does(devices, width):
    """With columns of at least a lane on each device on up to 32 of them, by a gathered embedding on more."""
    llama = DecoderConfig(128256, 32, 4096, 32, 8, 128, 14336)
    assert small(llama, devices).model_dim == width
    assert (width // devices >= LANES) == (4096 // devices >= LANES)


def test_runs_in_one_program_are_checked_too(tmp_path, monkeypatch):
    """Before anything is written."""
    lose_a_micro_batch(monkeypatch)
    monkeypatch.setattr(gradient_check, "platform_of", lambda mesh: "tpu")
    configs = [tiny.config(tmp_path, **PARTS, seed=seed) for seed in (0, 1)]
    with pytest.raises(WrongGradientError, match=r"--config\.batch\.micro_batches=2: "):
        run_stacked(configs, [tmp_path / "a", tmp_path / "b"])
    assert not (tmp_path / "a").exists()
