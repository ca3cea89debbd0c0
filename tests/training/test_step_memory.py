"""The estimate of a step's memory: what layers save, against what JAX keeps; the whole, against what XLA reports."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from configs import sft
from sft_jax.models.config import REMAT_POLICIES, DecoderConfig, Execution
from sft_jax.models.decoder import Decoder
from sft_jax.models.initial import parameter_shapes
from sft_jax.options import options_of
from sft_jax.runs.precision import with_dtypes
from sft_jax.sharding import make_mesh
from sft_jax.training.memory import BatchSizes, step_program
from sft_jax.training.setup import resolve_execution
from sft_jax.training.step_memory import common_device_bytes, device_bytes, saved_bytes, step_memory
from tests.chips import torus

LLAMA = DecoderConfig(
    vocab_size=64, num_layers=3, model_dim=32, num_heads=4, num_kv_heads=2, head_dim=16, ffn_dim=96, rope_theta=1e4
)
DELTA = {"delta_key_heads": 2, "delta_value_heads": 4, "delta_key_dim": 8, "delta_value_dim": 12}
GEMMA4 = dataclasses.replace(LLAMA, norm_placement="both", qk_norm="head", value_norm=True, layer_scale=True)
DECODERS = {
    "llama": LLAMA,
    "norms of queries and keys": dataclasses.replace(LLAMA, qk_norm="head"),
    "norms after": dataclasses.replace(LLAMA, norm_placement="both"),
    "no gate": dataclasses.replace(LLAMA, ffn_gated=False, activation="gelu"),
    "experts": dataclasses.replace(LLAMA, num_experts=4, experts_per_token=2),
    "experts and what is beside": dataclasses.replace(LLAMA, num_experts=4, experts_per_token=2, shared_ffn_dim=48),
    "latent attention": dataclasses.replace(
        LLAMA, num_kv_heads=4, kv_rank=24, query_rank=20, head_dim=24, rope_dim=8, value_dim=12, rope_interleaved=True
    ),
    "gated attention": dataclasses.replace(LLAMA, qk_norm="head", attention_gate=True),
    "gated delta nets": dataclasses.replace(LLAMA, mixer="delta", **DELTA),
    "gated experts beside": dataclasses.replace(
        LLAMA, num_experts=4, experts_per_token=2, shared_ffn_dim=48, shared_gate=True
    ),
    "normed values": GEMMA4,
    "values that are keys": dataclasses.replace(GEMMA4, values_are_keys=True),
    "second embedding": dataclasses.replace(GEMMA4, per_layer_dim=8),
    "experts beside": dataclasses.replace(
        GEMMA4, num_experts=4, experts_per_token=2, shared_ffn_dim=48, expert_norms=True, router_scales=True
    ),
}


def kept(decoder: DecoderConfig, execution: Execution, sequences: int) -> int:
    """Bytes that JAX keeps from the forward to the backward pass of the layers, in arrays with an entry a layer."""
    model, tokens = Decoder(decoder, execution), jnp.zeros((sequences, 16), jnp.int32)
    shapes = parameter_shapes(decoder)

    def residuals(params):
        hidden = lambda params: model.apply({"params": params}, tokens, method="hidden")[0]
        return jax.vjp(hidden, params)[1]

    leaves = jax.tree.leaves(jax.eval_shape(residuals, shapes))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if leaf.shape[:1] == (decoder.num_layers,))


@pytest.mark.parametrize("remat", REMAT_POLICIES)
@pytest.mark.parametrize("name", DECODERS)
def test_what_layers_save_is_what_jax_keeps(name, remat):
    """Of another sequence, so that weights, which are kept too, do not count."""
    decoder = DECODERS[name]
    execution = Execution(matmul_dtype="bfloat16", activation_dtype="bfloat16", layer_layout="scan", remat=remat)
    more = kept(decoder, execution, 2) - kept(decoder, execution, 1)
    expected = decoder.num_layers * 16 * saved_bytes(decoder, execution)
    # Experts also keep in what order their tokens are sorted, and delta nets a few numbers of each head.
    exact = not ((decoder.num_experts or decoder.mixer == "delta") and remat == "none")
    assert more == (expected if exact else pytest.approx(expected, rel=0.06))


DEEP = dataclasses.replace(LLAMA, num_layers=12, model_dim=64, ffn_dim=256)


def on_emulated_devices(remat: str, decoder: DecoderConfig, **overrides):
    """(estimate, bytes of a device's part of the batch, what XLA reports) of a step on 8 emulated devices."""
    config = sft.get_config().copy_and_resolve_references()
    config.data.sequence_length, config.batch.sequences = 256, 32
    config.execution.layer_layout, config.execution.remat = "scan", remat
    config.update_from_flattened_dict(overrides)
    options = options_of(with_dtypes(config, "cpu"))
    mesh = make_mesh(options.mesh, jax.devices())
    program = step_program(options, decoder, BatchSizes(256, 128), mesh)
    shards = {name: leaf.sharding.shard_shape(leaf.shape) for name, leaf in program.batch.items()}
    batch = sum(4 * math.prod(shape) for shape in shards.values())
    estimate = step_memory(options, decoder, mesh, program.model.execution)
    return estimate, batch, program.lowered().compile().memory_analysis()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("decoder", "mesh"),
    [
        (DEEP, {}),
        (DEEP, {"mesh.fsdp": 2, "mesh.tensor": 2, "mesh.replica": 2, "batch.sequences": 16}),
        (dataclasses.replace(DEEP, num_experts=4, experts_per_token=2), {"mesh.fsdp": 2, "mesh.expert": 4}),
    ],
    ids=["fsdp", "replica, fsdp and tensor", "experts that exchange tokens"],
)
def test_state_and_what_is_saved_are_what_xla_reports(decoder, mesh):
    """The state to the byte; what is saved by the difference between two policies, since for CPUs XLA arranges the rest
    in another way than for accelerators."""
    estimates, temporary = {}, {}
    for remat in ("full", "products"):
        estimates[remat], batch, report = on_emulated_devices(remat, decoder, **mesh)
        assert estimates[remat].state + batch == report.argument_size_in_bytes
        temporary[remat] = report.temp_size_in_bytes
    more = temporary["products"] - temporary["full"]
    assert more == pytest.approx(estimates["products"].saved - estimates["full"].saved, rel=0.15)


@pytest.mark.parametrize("parts", [1, 2])
def test_gradients_in_bfloat16_take_half_the_place(parts):
    """Those of layers' kernels; their sum over micro-batches is float32."""
    held = {}
    for gradients in ("float32", "bfloat16"):
        config = sft.get_config().copy_and_resolve_references()
        config.batch.micro_batches, config.precision.gradients = parts, gradients
        options = options_of(with_dtypes(config, "cpu"))
        mesh = make_mesh(options.mesh, jax.devices())
        held[gradients] = step_memory(options, DEEP, mesh, resolve_execution(options, DEEP, mesh)).gradients
    embedding, layers = 64 * 64, 12 * (64 * (64 + 32 + 32) + 64 * 64 + 3 * 64 * 256)  # queries … out, feed-forward
    norms = 64 + 12 * 2 * 64  # whole on each device
    everything = 4 * ((2 * embedding + layers) // 8 + norms)
    assert held["float32"] == parts * everything
    assert held["bfloat16"] == parts * everything - 2 * layers // 8


@pytest.mark.parametrize(("kind", "gibibytes"), [("TPU v5 lite", 15.75), ("TPU v3", None)])
def test_memory_of_devices_that_are_not_here(kind, gibibytes):
    devices = [dataclasses.replace(chip, device_kind=kind) for chip in torus(2, 2)]
    assert device_bytes(devices) == (None if gibibytes is None else int(gibibytes * 2**30))


@pytest.mark.parametrize(("other", "found"), [(str(14 * 2**30), 14 * 2**30), ("", None)])
def test_processes_take_the_least_memory_of_all(other, found, monkeypatch):
    """More than 2 GiB, which 32 bits do not hold; or none, where another process does not know."""
    monkeypatch.setattr("sft_jax.training.step_memory.exchanged", lambda said: [said, other])
    devices = [dataclasses.replace(chip, device_kind="TPU v5 lite") for chip in torus(2, 2)]
    assert common_device_bytes(devices) == found
