"""The head over a mesh equals the head on one device, and no chunk sums its gradient over devices."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sft_jax.models.matmul import einsum
from sft_jax.models.partitioning import BATCH_AXES
from sft_jax.objectives import Settings, cross_entropy
from sft_jax.objectives.head import over_chunks
from sft_jax.objectives.head_on_mesh import head_on_mesh
from sft_jax.sharding import make_mesh, shardings_of
from tests.collectives import collectives

SEQUENCES, DIM, CHUNK = 8, 16, 3
VOCABULARY, SLOTS = {"split": 1024, "gathered": 32}, {"split": 8, "gathered": 24}
MESHES = {
    "fsdp 8": {"fsdp": 8},
    "replica 2, fsdp 2, tensor 2": {"replica": 2, "fsdp": 2, "tensor": 2},
    "expert 2, fsdp 2, context 2": {"expert": 2, "fsdp": 2, "context": 2},
    "context 2, tensor 4": {"context": 2, "tensor": 4},
}


def objective(trained, frozen, hidden, targets, weights, *, tied, on_mesh=None):
    weight = (trained["params"] | frozen["head"]["params"])["embedding" if tied else "head"]
    logits = einsum("bsd,vd->bsv" if tied else "bsd,dv->bsv", hidden, weight, "float32", "float32")
    logits = logits if on_mesh is None else on_mesh.logits(logits)
    return cross_entropy(logits, targets, weights, Settings(z_loss=frozen["objective"]["z_loss"]))


def arrays(vocabulary, slots, tied, trains):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    head = {"params": {"embedding": draw(vocabulary, DIM)} if tied else {"head": draw(DIM, vocabulary)}}
    trained, frozen = (head, {"params": {}}) if trains else ({"params": {}}, head)
    targets = jnp.asarray(rng.integers(0, vocabulary, (SEQUENCES, slots)), jnp.int32)
    weights = jnp.asarray(rng.choice([0.0, 0.5, 1.0], (SEQUENCES, slots)), jnp.float32)
    return (
        trained,
        {"head": frozen, "objective": {"z_loss": jnp.float32(1e-2)}},
        draw(SEQUENCES, slots, DIM),
        targets,
        weights,
    )


def loss(tied, gradients, trained, frozen, hidden, targets, weights):
    """As the step asks for it."""
    on_mesh = head_on_mesh(trained, frozen, hidden, "float32", gradients)
    function = functools.partial(objective, tied=tied, on_mesh=on_mesh)
    metrics = over_chunks(function, trained, frozen, hidden, targets, weights, CHUNK, on_mesh=on_mesh)
    return metrics["loss"][0] / metrics["loss"][1], metrics


def placed(mesh, trained, frozen, *of_slots):
    put = lambda tree: jax.device_put(tree, shardings_of(tree, mesh))
    return put(trained), put(frozen), *jax.device_put(of_slots, NamedSharding(mesh, P(BATCH_AXES, "context")))


def mesh_of(sizes):
    return make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])


def differentiated(tied, gradients="float32"):
    return jax.jit(jax.value_and_grad(functools.partial(loss, tied, gradients), argnums=(0, 2), has_aux=True))


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("way", ["split", "gathered"])
@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
def test_the_mesh_changes_no_number(sizes, way, tied, trains):
    case = arrays(VOCABULARY[way], SLOTS[way], tied, trains)
    expected = differentiated(tied)(*case)
    with jax.set_mesh(mesh_of(sizes)):
        assert head_on_mesh(*case[:3], "float32", "float32").splits_vocabulary == (way == "split")
        on_devices = placed(mesh_of(sizes), *case)
        found = differentiated(tied)(*on_devices)
        measured = jax.jit(functools.partial(loss, tied, "float32"))(*on_devices)
    close = lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)
    jax.tree.map(close, found, expected)
    jax.tree.map(close, measured, expected[0])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("way", ["split", "gathered"])
@pytest.mark.parametrize("sizes", list(MESHES.values())[:3], ids=list(MESHES)[:3])
def test_no_loop_sums_a_gradient_of_the_head(sizes, way, tied):
    """In the loop over chunks nothing larger than the hidden states of a chunk is exchanged."""
    case = arrays(VOCABULARY[way], SLOTS[way], tied, True)
    with jax.set_mesh(mesh_of(sizes)):
        program = differentiated(tied).lower(*placed(mesh_of(sizes), *case)).compile().as_text()
    in_loop = [each for each in collectives(program) if each.in_loop]
    assert max((each.size for each in in_loop), default=0) <= SEQUENCES * CHUNK * DIM * sizes.get("context", 1)
    if way == "gathered" and "tensor" not in sizes:
        assert in_loop == []


def test_what_the_compiler_does_alone_is_seen():
    """Without a layout it sums the head's gradient once a chunk."""
    trained, frozen, *rest = arrays(VOCABULARY["gathered"], SLOTS["gathered"], False, True)
    function = functools.partial(objective, tied=False)
    total = lambda *case: over_chunks(function, *case, CHUNK)["loss"][0]
    with jax.set_mesh(mesh_of({"fsdp": 8})):
        case = placed(mesh_of({"fsdp": 8}), trained, frozen, *rest)
        program = jax.jit(jax.grad(total)).lower(*case).compile().as_text()
    sums = [each for each in collectives(program) if each.in_loop and each.kind in ("all-reduce", "reduce-scatter")]
    assert max(each.size for each in sums) >= DIM * VOCABULARY["gathered"] // 8


def test_gradients_summed_in_bfloat16_are_rounded_to_it():
    case = arrays(VOCABULARY["gathered"], SLOTS["gathered"], False, True)
    expected = differentiated(False)(*case)[1][0]["params"]["head"]
    with jax.set_mesh(mesh_of({"fsdp": 8})):
        found = differentiated(False, "bfloat16")(*placed(mesh_of({"fsdp": 8}), *case))[1][0]["params"]["head"]
    assert found.dtype == jnp.float32
    difference = np.linalg.norm(np.asarray(found) - np.asarray(expected)) / np.linalg.norm(np.asarray(expected))
    assert 1e-4 < difference < 2**-7


def test_one_device_and_uneven_batches_are_left_to_the_compiler():
    trained, frozen, hidden, *_ = arrays(32, 8, False, True)
    assert head_on_mesh(trained, frozen, hidden, "float32", "float32") is None
    with jax.set_mesh(mesh_of({"tensor": 8})):
        assert head_on_mesh(trained, frozen, hidden, "float32", "float32") is None
    with jax.set_mesh(mesh_of({"fsdp": 8})):
        assert head_on_mesh(trained, frozen, hidden[:3], "float32", "float32") is None


@pytest.mark.parametrize(
    ("slots", "trains", "gradients", "splits"),
    [  # hidden states in float32 and their gradients: 8 bytes a number; a head in float32 4, its gradient 4 or 2
        (31, True, "float32", True),
        (33, True, "float32", False),
        (23, True, "bfloat16", True),
        (25, True, "bfloat16", False),
        (15, False, "float32", True),
        (17, False, "float32", False),
    ],
)
def test_what_moves_fewer_bytes_is_taken(slots, trains, gradients, splits):
    trained, frozen, hidden, *_ = arrays(8 * 32, slots, False, trains)
    with jax.set_mesh(mesh_of({"fsdp": 8})):
        assert head_on_mesh(trained, frozen, hidden, "float32", gradients).splits_vocabulary == splits
