"""What the compilers of TPUs and GPUs make of attention over long sequences, forward and backward, with no device."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sft_jax.models.attention import attention
from sft_jax.models.partitioning import BATCH_AXES, MESH_AXES
from sft_jax.models.visibility import Visibility
from sft_jax.planning.topologies import devices_of, parse

LENGTH, HEADS, KV_HEADS, HEAD_DIM = 32_768, 32, 8, 128  # as Llama 3.1 8B has
GIB = 2**30


def compiled(topology, backend, context, with_sinks, with_parents, window):
    """Of one sequence for `context` devices."""
    mesh = Mesh(
        np.array(devices_of(parse(topology))[:context]).reshape(1, 1, 1, context, 1),
        MESH_AXES,
        axis_types=(AxisType.Auto,) * len(MESH_AXES),
    )

    def array(dtype, *shape):
        spec = P(BATCH_AXES, "context", *(None,) * (len(shape) - 2))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    query, key = (array(jnp.bfloat16, 1, LENGTH, heads, HEAD_DIM) for heads in (HEADS, KV_HEADS))
    numbers = array(jnp.int32, 1, LENGTH)
    sinks = jax.ShapeDtypeStruct((HEADS,), jnp.float32, sharding=NamedSharding(mesh, P()))

    def both(query, key, value, sinks, cotangent, positions, segments, parents):
        parents = parents if with_parents else None
        seen = Visibility(positions, positions, segments, segments, parents, in_order=True, dealt=context)

        def run(query, key, value, sinks):
            return attention(query, key, value, seen, "bfloat16", backend, window, sinks=sinks if with_sinks else None)

        out, pull = jax.vjp(run, query, key, value, sinks)
        return out, pull(cotangent)

    with jax.set_mesh(mesh):
        return jax.jit(both).lower(query, key, key, sinks, query, numbers, numbers, numbers).compile()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("context", "with_sinks", "with_parents", "window"),
    [
        (1, False, False, 0),
        (4, False, False, 0),
        (1, True, False, 0),
        (4, True, False, 0),
        (1, True, True, 0),
        (4, False, True, 4096),
    ],
)
@pytest.mark.parametrize(
    ("topology", "backend"),
    [
        pytest.param("v5p:2x2x1", "splash", marks=pytest.mark.compilers("tpu")),
        pytest.param("h100:4", "triton", marks=pytest.mark.compilers("gpu")),
    ],
)
def test_32_thousand_tokens_take_little_memory(topology, backend, context, with_sinks, with_parents, window):
    """At most 1 GiB a device beside inputs and results, and nothing as large as the scores of a head.

    Splash reads parents apart: what it reads, and the gradients of queries, are there twice for a while.
    """
    program = compiled(topology, backend, context, with_sinks, with_parents, window)
    most = 2 * GIB if with_parents and backend == "splash" else GIB
    assert program.memory_analysis().temp_size_in_bytes <= most
    shapes = re.findall(r"\[([\d,]+)\]", program.as_text())
    assert max(math.prod(map(int, shape.split(","))) for shape in shapes) < LENGTH * LENGTH
