"""What the compilers for TPUs and GPUs make of the step of a model 4,096 wide, for hardware that is not there."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from configs import sft
from sft_jax.models.config import DecoderConfig
from sft_jax.options import Options, options_of
from sft_jax.runs.precision import with_dtypes
from sft_jax.sharding import batch_sharding, make_mesh, platform_of
from sft_jax.training.abstract import abstract_state
from sft_jax.training.setup import make_model, step_settings
from sft_jax.training.step import compile_train_step
from sft_jax.training.step_memory import SHARE, device_bytes, step_memory

topologies = pytest.importorskip("sft_jax.planning.topologies")

WIDE = DecoderConfig(
    vocab_size=128256,
    num_layers=2,
    model_dim=4096,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    ffn_dim=14336,
    rope_theta=5e5,
    max_positions=131072,
)


def mesh_of(name: str) -> Mesh:
    return make_mesh({"fsdp": -1}, topologies.devices_of(topologies.parse(name)))


def options_on(mesh: Mesh, **overrides) -> Options:
    """One sequence of 4,096 tokens a device."""
    config = sft.get_config().copy_and_resolve_references()
    config.data.sequence_length, config.batch.sequences = 4096, mesh.size
    config.update_from_flattened_dict(overrides)
    return options_of(with_dtypes(config, platform_of(mesh)))


def compiled(options: Options, decoder: DecoderConfig, mesh: Mesh):
    """(compiled step, its execution)."""
    model, settings = make_model(options, decoder, mesh), step_settings(options, mesh)
    state = abstract_state(options, decoder, mesh, model.layout)
    shape, sharding = (options.batch.sequences, options.data.sequence_length), batch_sharding(mesh)
    integers = ("tokens", "positions", "segment_ids", "target_slots", "targets")
    dtypes = dict.fromkeys(integers, jnp.int32) | {"weights": jnp.float32}
    batch = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, dtype in dtypes.items()}
    with jax.set_mesh(mesh):
        return compile_train_step(model, settings, state, mesh).lower(state, batch).compile(), model.execution


@pytest.mark.compilers("tpu")
@pytest.mark.slow
@pytest.mark.parametrize(("remat", "gradients"), [("full", "float32"), ("full", "bfloat16"), ("products", "float32")])
def test_the_estimate_of_memory(remat, gradients):
    """Within 15 %, which is the margin that is left when a remat policy is chosen."""
    mesh = mesh_of("v5e:4x4")
    options = options_on(mesh, **{"execution.remat": remat, "precision.gradients": gradients})
    step, execution = compiled(options, WIDE, mesh)
    estimate = step_memory(options, WIDE, mesh, execution)
    assert estimate.total == pytest.approx(step.memory_analysis().peak_memory_in_bytes, rel=1 - SHARE)


@pytest.mark.compilers("tpu")
def test_a_large_model_saves_little_and_a_small_one_everything():
    """8B on 16 chips of 16 GB has room for the products of attention; on as many of 95 GB for everything."""
    large = dataclasses.replace(WIDE, num_layers=32)
    for name, remat in (("v5e:4x4", "attention_products"), ("v5p:2x2x4", "none")):
        mesh = mesh_of(name)
        assert device_bytes(mesh.devices.flat) > 15 * 2**30
        assert make_model(options_on(mesh), large, mesh).execution.remat == remat


def scatters(deterministic: bool) -> list[str]:
    """The scatters of a lookup's gradient, as the compiler for GPUs has them."""
    mesh = mesh_of("h100:1")
    settings = step_settings(options_on(mesh, **{"execution.deterministic": deterministic}), mesh)
    array = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P()))
    shapes = array((1000, 64), jnp.float32), array((512,), jnp.int32), array((512, 64), jnp.float32)
    loss = lambda table, rows, factors: jnp.sum(jnp.take(table, rows, axis=0) * factors)
    lowered = jax.jit(jax.grad(loss), compiler_options=settings.compiler_options).lower(*shapes)
    return [line for line in lowered.compile().as_text().splitlines() if " scatter(" in line]


@pytest.mark.compilers("gpu")
def test_a_deterministic_step_adds_up_in_one_order():
    """Rows that are looked up several times are summed before they are written: no two are added to the same place."""
    assert not any("unique_indices=true" in line for line in scatters(deterministic=False))
    assert all("unique_indices=true" in line for line in scatters(deterministic=True))
