"""The fused kernels of TPUs and GPUs, interpreted: what they read, and its gradients, are the reference's."""

import functools

import jax
import numpy as np
import pytest

from sft_jax.models.attention import attention
from sft_jax.models.attention.choice import backend_with_parents
from sft_jax.models.attention.splash_mask import slot_mask
from sft_jax.models.context import dealt_order
from tests.models.attention.packed import differences, inputs, results, sinks_of, visibility

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
@pytest.mark.parametrize("backend", KERNELS)
def test_bfloat16_products_are_near(backend):
    """Inputs and what is read are rounded to 8 bits: 0.4 % at most each, of which gradients have several."""
    ours = results(backend, 130, "bfloat16", sinks=sinks_of())
    exact, of_blocks = (results(*how, sinks=sinks_of()) for how in (("reference", 130), ("blocked", 130, "bfloat16")))
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
        "segments": {"segmented": False},
        "window": {"window": 0},
        "softcap": {"softcap": 0.0},
        "sinks": {"sinks": sinks_of()},  # those that are not in what is expected
    }[without]
    assert min(differences(results(backend, **case | other)[:4], expected("window and softcap"))) > 2e-2


@pytest.mark.parametrize("backend", KERNELS)
def test_what_a_kernel_cannot_say_of_parents_is_refused(backend):
    """What is named in its place says them."""
    query, key, value, _ = inputs(20)
    seen = visibility(20)
    seen = seen.replace(query_parents=seen.key_segments * 0 + 1)
    with pytest.raises(ValueError, match=f"kernels of {backend} cannot say .* the attention_backend blocked$"):
        attention(query, key, value, seen, "float32", backend)
    named = backend_with_parents(backend)
    found, all_at_once, without = (
        np.asarray(attention(query, key, value, seen.replace(query_parents=parents), "float32", name))
        for name, parents in ((named, seen.query_parents), ("reference", seen.query_parents), (named, None))
    )
    np.testing.assert_allclose(found, all_at_once, atol=1e-5)
    assert np.abs(found - without).max() > 0.1


@pytest.mark.parametrize("window", [0, 5, 17, 200])
@pytest.mark.parametrize(("dealt", "parts"), [(1, 1), (2, 2), (4, 4), (2, 1), (1, 2)])
def test_the_mask_of_slots_block_by_block(window, dealt, parts):
    """Whatever the block, and where queries stand: a slot sees itself and the window before it."""
    slots, keys = dealt_order(64, dealt), np.arange(64)
    mask = slot_mask(64, 64 // parts, 64, dealt, parts, window)
    behind = slots[:, None] - keys[None]
    seen = (behind >= 0) & (behind < (window or 64))
    for rows in range(0, 64, 8):
        for columns in range(0, 64, 16):
            block = slice(rows, rows + 8), slice(columns, columns + 16)
            np.testing.assert_array_equal(mask[block], seen[block])


def test_kernels_hold_no_array_of_all_scores():
    """Neither the output's gradient: the largest array is one of heads, and not one of queries and keys."""
    length = 1024
    query, key, value, cotangent = inputs(length)

    def gradients(query, key, value, cotangent):
        run = lambda *arrays: attention(*arrays, visibility(length), "float32", "splash", 100)
        return jax.vjp(run, query, key, value)[1](cotangent)

    lowered = jax.export.export(jax.jit(gradients), platforms=["tpu"])(query, key, value, cotangent).mlir_module()
    assert lowered.count("tpu_custom_call") >= 3  # forward, and the gradients of queries and of keys
    assert f"{length}x{length}x" not in lowered
