"""Rows looked up over a mesh, and their gradient, equal those of one device; and what devices exchange for them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sft_jax.models.lookup import LANES, look_up
from sft_jax.models.matmul import Weight
from sft_jax.models.partitioning import BATCH_AXES, layer_spec
from sft_jax.sharding import make_mesh, shardings_of
from tests.collectives import collectives

SEQUENCES, TOKENS, VOCABULARY = 8, 6, 24
WIDTH = {"columns": 8 * LANES, "gathered": 32, "rows": 20}  # 20 columns cannot be split by 8 devices
MESHES = {
    "fsdp 8": {"fsdp": 8},
    "replica 2, fsdp 2, tensor 2": {"replica": 2, "fsdp": 2, "tensor": 2},
    "expert 2, fsdp 2, context 2": {"expert": 2, "fsdp": 2, "context": 2},
    "fsdp 2, context 2, tensor 2": {"fsdp": 2, "context": 2, "tensor": 2},
}


def case(width):
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.standard_normal((VOCABULARY, width)), jnp.float32)
    tokens = jnp.asarray(rng.integers(0, VOCABULARY // 2, (SEQUENCES, TOKENS)), jnp.int32)  # some often, some never
    return table, tokens


def differentiated(table, tokens, dtype, gradients="float32"):
    """The rows, and the gradient of a number that depends on each of them otherwise."""

    def number(table):
        weight = Weight(layer_spec("embedding", table.shape), gradients)
        rows = look_up(table, tokens, dtype, weight)
        return jnp.sum(jnp.sin(rows.astype(jnp.float32))), rows

    return jax.jit(jax.grad(number, has_aux=True))


def on_mesh(sizes, width):
    mesh = make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
    table, tokens = case(width)
    tree = {"embedding": table}
    return (
        mesh,
        jax.device_put(tree, shardings_of(tree, mesh))["embedding"],
        jax.device_put(tokens, NamedSharding(mesh, P(BATCH_AXES, "context"))),
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("way", WIDTH)
@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
def test_the_mesh_changes_no_number(sizes, way, dtype):
    table, tokens = case(WIDTH[way])
    expected = jax.jit(
        jax.grad(
            lambda table: (
                jnp.sum(jnp.sin((rows := jnp.take(table, tokens, axis=0).astype(dtype)).astype(jnp.float32))),
                rows,
            ),
            has_aux=True,
        )
    )(table)
    mesh, table, tokens = on_mesh(sizes, WIDTH[way])
    with jax.set_mesh(mesh):
        gradient, rows = differentiated(table, tokens, dtype)(table)
    np.testing.assert_array_equal(np.asarray(rows, np.float32), np.asarray(expected[1], np.float32))
    np.testing.assert_allclose(np.asarray(gradient), np.asarray(expected[0]), rtol=1e-5, atol=1e-6)
    assert gradient.dtype == jnp.float32


def test_of_columns_devices_exchange_their_own_rows_alone():
    mesh, table, tokens = on_mesh({"fsdp": 8}, WIDTH["columns"])
    with jax.set_mesh(mesh):
        program = differentiated(table, tokens, "bfloat16").lower(table).compile().as_text()
    found = [(each.kind, each.size) for each in collectives(program)]
    own = SEQUENCES * TOKENS * WIDTH["columns"] // 8
    assert sum(size for kind, size in found if kind == "all-to-all") <= 8 * own  # as tuples of eighths
    assert max((size for kind, size in found if kind != "all-to-all"), default=0) <= SEQUENCES * TOKENS


@pytest.mark.parametrize("way", ["gathered", "rows"])
def test_otherwise_the_table_is_gathered_and_nothing_of_tokens(way):
    mesh, table, tokens = on_mesh({"fsdp": 8}, WIDTH[way])
    with jax.set_mesh(mesh):
        program = differentiated(table, tokens, "float32").lower(table).compile().as_text()
    assert {each.size for each in collectives(program) if each.size > 1} <= {
        VOCABULARY * WIDTH[way],
        VOCABULARY * WIDTH[way] // 8,
    }
