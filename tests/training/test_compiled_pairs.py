"""The step of pairs as the compilers for TPUs and GPUs leave it: answers read their prompt by kernels, of no square."""

import collections
import re

import jax
import pytest

from configs import preference
from sft_jax.models.config import DecoderConfig
from sft_jax.options import options_of
from sft_jax.planning import topologies
from sft_jax.runs.precision import with_dtypes
from sft_jax.sharding import make_mesh, platform_of
from sft_jax.training.memory import BatchSizes, step_program

LENGTH, TARGETS = 4608, 1152  # of a sequence; no weight has such a dimension
DECODER = DecoderConfig(128256, 2, 4096, 32, 8, 128, 14336, rope_theta=5e5, max_positions=8192)


@pytest.fixture
def quick():
    """Compiles in a fraction of the time; no array gets other dimensions."""
    before = jax.config.jax_optimization_level
    jax.config.update("jax_optimization_level", "O0")
    yield
    jax.config.update("jax_optimization_level", before)


def compiled(topology, **overrides):
    """(the attention of the step, its text); a sequence a device."""
    devices = topologies.devices_of(topologies.parse(topology))
    mesh = make_mesh({"fsdp": -1}, devices)
    config = preference.get_config().copy_and_resolve_references()
    given = {"data.sequence_length": LENGTH, "batch.sequences": len(devices), "execution.remat": "full"}
    config.update_from_flattened_dict(given | overrides)
    program = step_program(
        options_of(with_dtypes(config, platform_of(mesh))), DECODER, BatchSizes(LENGTH, TARGETS), mesh
    )
    with jax.set_mesh(mesh):
        text = program.step.lower(program.state, program.batch).compile().as_text()
    return program.model.execution.attention_backend, text


def squares(text):
    """Shapes of results with two dimensions of a sequence's length."""
    shapes = set(re.findall(r"\b[a-z]+\d*\[([\d,]+)\]", text))
    return {shape for shape in shapes if collections.Counter(shape.split(","))[str(LENGTH)] > 1}


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("topology", "attention"),
    [
        pytest.param("v5e:4x4", "splash", marks=pytest.mark.compilers("tpu")),
        pytest.param("h100:8", "triton", marks=pytest.mark.compilers("gpu")),
    ],
)
def test_no_array_is_of_a_sequence_squared(topology, attention):
    chosen, text = compiled(topology)
    assert chosen == attention
    assert not squares(text)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.compilers("tpu")
def test_a_square_would_be_seen():
    """Which attention by `reference` makes: all scores, and which of them are seen."""
    assert squares(compiled("v5e:4x4", **{"execution.attention": "reference"})[1])
