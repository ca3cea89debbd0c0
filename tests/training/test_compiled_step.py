"""What the compiled train step exchanges between devices."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sft_jax import sharding
from sft_jax.models.config import DecoderConfig
from sft_jax.options import options_of
from sft_jax.planning import topologies
from sft_jax.planning.buffers import largest_results
from sft_jax.planning.hlo import read
from sft_jax.training import setup, step
from sft_jax.training.abstract import abstract_state
from tests import tiny
from tests.collectives import collectives

CHUNK = 4  # slots of a sequence
WIDTH, VOCABULARY, TOKENS, SEQUENCES = 32, 320, 32, 8
_numbers = itertools.count()
REMATERIALIZATION = "Involuntary full rematerialization"
MESH = {"mesh.replica": 2, "mesh.fsdp": 2, "mesh.tensor": 2}


def compiled(root, decoder: DecoderConfig, devices, tokens: int, **overrides) -> str:
    """The step of full fine-tuning for these devices, as the compiler leaves it, from shapes alone."""
    given = {"execution.layer_layout": "scan", "data.sequence_length": tokens}
    options = options_of(tiny.config(root, "full", **given | overrides))
    mesh = sharding.make_mesh(options.mesh, devices)
    model = setup.make_model(options, decoder, mesh)
    state = abstract_state(options, decoder, mesh, model.layout)
    placed = sharding.batch_sharding(mesh)
    of = lambda dtype: jax.ShapeDtypeStruct((options.batch.sequences, tokens), dtype, sharding=placed)
    names = ("tokens", "positions", "segment_ids", "target_slots", "targets")
    batch = {name: of("int32") for name in names} | {"weights": of("float32")}
    with jax.set_mesh(mesh):
        function = step.compile_train_step(model, setup.step_settings(options, mesh), state, mesh)
        return function.lower(state, batch).compile().as_text()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_no_loop_sums_a_gradient_of_the_head(tied, micro_batches, tmp_path):
    """On (2, 2, 2) devices; a loop over micro-batches is one too, and sums each of theirs once."""
    decoder = DecoderConfig(VOCABULARY, 2, WIDTH, 4, 2, 8, 48, tie_embeddings=tied)
    asked = MESH | {
        "batch.sequences": SEQUENCES,
        "batch.micro_batches": micro_batches,
        "objective.head_chunk_tokens": CHUNK * 2 // micro_batches,
    }
    program = compiled(tmp_path, decoder, jax.devices(), TOKENS, **asked)
    found = [each for each in collectives(program) if each.kind in ("all-reduce", "reduce-scatter")]
    of_head = [each for each in found if "head_and_loss" in each.name and each.size >= VOCABULARY * WIDTH // 8]
    inside = [each for each in of_head if each.name.count("while/body") > micro_batches - 1]
    assert inside == []
    assert of_head  # behind the loop over chunks, over replicas at least


def move_badly(devices) -> None:
    """Compiles a program that has an array laid out in a way to which XLA finds none but through a whole copy."""
    mesh = Mesh(np.array(devices).reshape(2, -1), ("a", "b"))
    place = lambda *axes: NamedSharding(mesh, P(*axes))
    sine = lambda x: jnp.sin(jax.lax.with_sharding_constraint(x * 2, place("a", "b", None)))
    number = next(_numbers)  # a program that was compiled before is not compiled again
    moved = lambda x: jax.lax.with_sharding_constraint(sine(x), place(None, None, ("b", "a"))) + number
    array = jax.ShapeDtypeStruct((1024, 512, 256), jnp.float32, sharding=place("a", "b", None))
    jax.jit(moved).lower(array).compile()


@pytest.fixture
def quick():
    """Compiles in a fraction of the time; what is exchanged stays the same."""
    before = jax.config.jax_optimization_level
    jax.config.update("jax_optimization_level", "O0")
    yield
    jax.config.update("jax_optimization_level", before)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("topology", "attention", "gradients"),
    [
        pytest.param("v5e:4x4", "splash", "float32", marks=pytest.mark.compilers("tpu")),
        pytest.param("v5e:4x4", "splash", "bfloat16", marks=pytest.mark.compilers("tpu")),
        pytest.param("h100:8", "triton", "float32", marks=pytest.mark.compilers("gpu")),
    ],
)
def test_the_step_on_accelerators(topology, attention, gradients, tmp_path, capfd):
    """Two layers as wide as Llama 3.1 8B; a sequence of 2,048 tokens a device, a length that no weight has."""
    devices = topologies.devices_of(topologies.parse(topology))
    tokens, chunk, width, vocabulary = 2048, 512, 4096, 128256
    decoder = DecoderConfig(vocabulary, 2, width, 32, 8, 128, 14336, rope_theta=5e5, max_positions=8192)
    asked = {
        "batch.sequences": len(devices),
        "mesh.fsdp": len(devices),
        "precision.matmul": "bfloat16",
        "precision.activations": "bfloat16",
        "precision.gradients": gradients,
        "execution.attention": attention,
        "objective.head_chunk_tokens": chunk,
    }
    program = compiled(tmp_path, decoder, devices, tokens, **asked)
    found = collectives(program)
    # Of the head, in the loop over chunks: hidden states and their gradients, numbers of a token; nothing of weights.
    of_head = [each for each in found if "head_and_loss" in each.name and each.in_loop]
    assert max(each.size for each in of_head) <= len(devices) * chunk * width
    assert not [each for each in of_head if {width, vocabulary // len(devices)} <= set(each.shape)]
    assert not [each for each in of_head if each.kind == "all-reduce" and each.size > len(devices) * chunk]
    # Of the layers: kernels are gathered as products read them, their gradients summed in the dtype that was asked for.
    kernels = [each for each in found if "/layers/" in each.name and "sharding_constraint" in each.name]
    assert {each.dtype for each in kernels if each.kind == "all-gather"} == {"bf16"}
    # (XLA for GPUs leaves out what a sum is of.)
    shapes = ({width}, {width, 1024}, {width, 14336})
    of_kernel = lambda each: "bsi,bso->io" in each.name or (each.kind == "reduce-scatter" and set(each.shape) in shapes)
    sums = {each.dtype for each in found if of_kernel(each)}
    assert sums == {{"float32": "f32", "bfloat16": "bf16"}[gradients]}
    # Gradients of all layers lie stacked in that dtype too.
    of_backward = [each for each in largest_results(read(program), 100) if each.phase == "backward"]
    stacked = {each.dtype for each in of_backward if width // len(devices) in each.sizes and each.sizes[0] == 2}
    assert stacked == {{"float32": "f32", "bfloat16": "bf16"}[gradients]}
    # No scores or masks of a sequence. (The optimizer's sums of squares may be made of squares of any size.)
    lines = [line for line in program.splitlines() if "/optimizer/square" not in line]
    assert not [line for line in lines if re.search(rf"\[(?:\d+,)*{tokens},{tokens}\]", line)]
    assert REMATERIALIZATION not in capfd.readouterr().err
    move_badly(devices)
    assert REMATERIALIZATION in capfd.readouterr().err  # it would be seen
