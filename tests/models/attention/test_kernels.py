"""The fused kernels of TPUs and GPUs, interpreted: what they read, and its gradients, are the reference's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.models.attention import attention
from sft_jax.models.attention.parents import query_segments
from sft_jax.models.attention.splash_mask import slot_mask
from sft_jax.models.context import dealt, dealt_order
from sft_jax.models.visibility import Visibility
from tests.models.attention.packed import branched, differences, inputs, results, sinks_of, visibility

KERNELS = ("splash", "triton")
# Of packed sequences with 3 query heads to a key head, and lengths that are no multiples of a block.
CASES = {
    "packed": {"length": 300},
    "window and softcap": {"length": 130, "window": 40, "softcap": 2.0},
    "one window of several": {"length": 200, "window": 50, "head_dim": 24},
    "sinks": {"length": 300, "window": 50, "sinks": sinks_of()},
    "narrow values": {"length": 130, "window": 40, "head_dim": 24, "value_dim": 16, "sinks": sinks_of()},
    "wide values": {"length": 130, "head_dim": 16, "value_dim": 24},
    "a head for each": {"length": 7, "heads": 2, "kv_heads": 2, "window": 0},
    "parents": {"length": 300, "seen": branched(300)},
    "parents before a window": {
        "length": 130,
        "window": 30,
        "softcap": 2.0,
        "seen": branched(130),
        "sinks": sinks_of(),
        "head_dim": 24,
        "value_dim": 16,
    },
}


@functools.cache
def expected(name):
    return results("reference", **CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", KERNELS)
def test_equals_the_reference(backend, case):
    assert max(differences(results(backend, **CASES[case]), expected(case))) < 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("seen", [visibility(130), branched(130)], ids=["packed", "parents"])
@pytest.mark.parametrize("backend", KERNELS)
def test_bfloat16_products_are_near(backend, seen):
    """Inputs and what is read are rounded to 8 bits: 0.4 % at most each, of which gradients have several."""
    given = {"sinks": sinks_of(), "seen": seen}
    ours = results(backend, 130, "bfloat16", **given)
    exact, of_blocks = (results(*how, **given) for how in (("reference", 130), ("blocked", 130, "bfloat16")))
    for found, other, true in zip(ours, of_blocks, exact, strict=True):
        assert 1e-4 < differences([found], [true])[0] < 0.01
        assert differences([found], [other])[0] < 0.01
    assert ours[-1].dtype == np.float32  # the gradient of sinks, which are parameters


@pytest.mark.slow
@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("without", ["segments", "window", "softcap", "sinks"])
def test_what_is_left_out_is_noticed(backend, without):
    """Each of them changes the result by a thousand times what the kernels may differ."""
    case = {"length": 130, "window": 40, "softcap": 2.0}
    other = {
        "segments": {"seen": visibility(130, segmented=False)},
        "window": {"window": 0},
        "softcap": {"softcap": 0.0},
        "sinks": {"sinks": sinks_of()},  # those that are not in what is expected
    }[without]
    assert min(differences(results(backend, **case | other)[:4], expected("window and softcap"))) > 2e-2


@pytest.mark.slow
@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("other", ["no parents", "what lies in between counts"])
def test_parents_are_noticed(backend, other):
    """So are the slots between a parent and its segment: with a window, positions are not slots."""
    case = CASES["parents before a window"]
    seen = case["seen"]
    slots = jnp.broadcast_to(jnp.arange(130), (2, 130))
    seen = {
        "no parents": seen.replace(query_parents=None),
        "what lies in between counts": seen.replace(query_positions=slots, key_positions=slots),
    }[other]
    found = results(backend, **case | {"seen": seen})
    assert min(differences(found, expected("parents before a window"))) > 2e-2


def test_slots_behind_parents_by_hand():
    """A trunk of two tokens with branches of two and one, a segment by itself, a trunk with a branch, and padding."""
    segments = jnp.asarray([[1, 1, 2, 2, 3, 4, 5, 6, 0, 0]])
    parents = jnp.asarray([[1, 1, 1, 1, 1, 4, 5, 5, 0, 0]])
    positions = jnp.asarray([[0, 1, 2, 3, 2, 0, 0, 1, 0, 1]])
    seen = Visibility(positions, positions, segments, segments, parents, in_order=True)
    np.testing.assert_array_equal(query_segments(seen).behind, [[0, 1, 2, 3, 2, 5, 6, 7, 8, 9]])
    seen = jax.tree.map(lambda x: dealt(x, 5), seen.replace(dealt=5))
    np.testing.assert_array_equal(query_segments(seen).behind, [[0, 9, 1, 8, 2, 7, 3, 6, 2, 5]])
    assert query_segments(seen.replace(query_parents=None))[1:] == (None, None)


@pytest.mark.parametrize("window", [0, 5, 17, 200])
@pytest.mark.parametrize("all_are_read", [False, True])
@pytest.mark.parametrize(("dealt", "parts"), [(1, 1), (2, 2), (4, 4), (2, 1), (1, 2)])
def test_the_mask_of_slots_block_by_block(window, all_are_read, dealt, parts):
    """Whatever the block, and where queries stand: a slot sees itself and the window before it, or all before it."""
    slots, keys = dealt_order(64, dealt), np.arange(64)
    mask = slot_mask(64, 64 // parts, 64, dealt, parts, window, 0 if all_are_read else window)
    behind = slots[:, None] - keys[None]
    seen = (behind >= 0) & (behind < ((not all_are_read and window) or 64))
    for rows in range(0, 64, 8):
        for columns in range(0, 64, 16):
            block = slice(rows, rows + 8), slice(columns, columns + 16)
            np.testing.assert_array_equal(mask[block], seen[block])


@pytest.mark.parametrize("seen", [visibility, branched])
def test_kernels_hold_no_array_of_all_scores(seen):
    """Neither the output's gradient: the largest array is one of heads, and not one of queries and keys."""
    length = 1024
    query, key, value, cotangent = inputs(length)

    def gradients(query, key, value, cotangent):
        run = lambda *arrays: attention(*arrays, seen(length), "float32", "splash", 100)
        return jax.vjp(run, query, key, value)[1](cotangent)

    lowered = jax.export.export(jax.jit(gradients), platforms=["tpu"])(query, key, value, cotangent).mlir_module()
    kernels = 3 * (1 if seen is visibility else 2)  # forward, and the gradients of queries and of keys
    assert lowered.count("tpu_custom_call") >= kernels
    assert f"{length}x{length}x" not in lowered
