"""Kernels on a mesh: split by sequences, heads and queries, and with what stands in dealt order, nothing changes."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from sft_jax.models.attention import attention
from sft_jax.models.attention.placement import placement
from sft_jax.models.partitioning import MESH_AXES
from tests.models.attention.packed import branched, differences, inputs, results, sinks_of, visibility

BACKENDS = ("splash", "triton", "blocked", "reference")
WINDOW, VALUE_DIM = 60, 12
# (fsdp, context, tensor), parts in whose order the slots stand, length, window, query and key heads; values are wider.
CASES = {
    "all axes": ((2, 2, 2), 2, 260, WINDOW, (8, 2)),
    "four parts": ((1, 4, 1), 4, 520, 0, (2, 2)),
    "more devices than key heads": ((2, 1, 4), 1, 70, 0, (8, 2)),
    "heads that cannot be split": ((1, 1, 4), 1, 70, 0, (6, 2)),
    "split from first to last": ((1, 2, 1), 1, 130, WINDOW, (2, 1)),
    "dealt out on one device": ((1, 1, 1), 2, 260, WINDOW, (2, 1)),
    "a length that cannot be split": ((1, 2, 1), 1, 71, 0, (2, 1)),
}


def mesh_of(fsdp, context, tensor):
    devices = np.array(jax.devices()[: fsdp * context * tensor]).reshape(1, fsdp, 1, context, tensor)
    return Mesh(devices, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


# Of those, with segments that have parents.
WITH_PARENTS = ("all axes", "split from first to last", "dealt out on one device")


@functools.cache
def expected(case, seen=visibility):
    _, _, length, window, (heads, kv_heads) = CASES[case]
    sizes = {"heads": heads, "kv_heads": kv_heads, "value_dim": VALUE_DIM}
    return results("reference", length, window=window, sinks=sinks_of(heads), seen=seen(length), **sizes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "seen"), [(case, visibility) for case in CASES] + [(case, branched) for case in WITH_PARENTS]
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_split_attention_equals_that_of_one_device(backend, case, seen):
    shape, parts, length, window, (heads, kv_heads) = CASES[case]
    with jax.set_mesh(mesh_of(*shape)):
        sizes = {"heads": heads, "kv_heads": kv_heads, "value_dim": VALUE_DIM}
        given = {"window": window, "parts": parts, "sinks": sinks_of(heads), "seen": seen(length)}
        found = results(backend, length, **given, **sizes)
    assert max(differences(found, expected(case, seen))) < 3e-6


@pytest.mark.parametrize(
    ("shape", "heads", "kv_heads", "spec", "repeats"),
    [
        ((2, 2, 2), 8, 2, (("replica", "fsdp", "expert"), "context", "tensor"), 1),
        ((2, 1, 4), 8, 2, (("replica", "fsdp", "expert"), "context", "tensor"), 2),  # a key head for each device
        ((1, 1, 8), 24, 3, (("replica", "fsdp", "expert"), "context", "tensor"), 8),
        ((1, 1, 4), 6, 2, (("replica", "fsdp", "expert"), "context", None), 1),
        ((4, 2, 1), 6, 2, (None, "context", "tensor"), 1),  # two sequences for four devices
    ],
)
def test_how_attention_is_split(shape, heads, kv_heads, spec, repeats):
    query, key, _, _ = inputs(8, heads=heads, kv_heads=kv_heads)
    with jax.set_mesh(mesh_of(*shape)):
        placed = placement(query, key)
    assert tuple(placed.spec)[:3] == spec
    assert placed.repeats == repeats


def test_outside_of_a_mesh_nothing_is_split():
    query, key, _, _ = inputs(8)
    assert placement(query, key) == (None, 1)


def test_the_gathered_keys_of_a_gradient_are_scattered():
    """Keys are gathered for their queries; their gradients come back split, and not summed on every device."""
    query, key, value, cotangent = inputs(256, heads=2, kv_heads=2)

    def gradients(*arrays):
        run = lambda *arrays: attention(*arrays, visibility(256).replace(dealt=2), "float32", "splash")
        return jax.vjp(run, *arrays)[1](cotangent)

    with jax.set_mesh(mesh_of(1, 2, 1)):
        program = str(jax.make_jaxpr(gradients)(query, key, value))
    assert program.count("reduce_scatter") == 2
