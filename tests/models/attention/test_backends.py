"""Attention: who sees whom, by hand; what XLA computes against torch's, forward and backward, over packed sequences."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

from sft_jax.models.attention import attention, blocked
from sft_jax.models.visibility import Visibility
from tests.models import programs, reference
from tests.models.attention.packed import HEAD_DIM, HEADS, KV_HEADS, inputs, results, sinks_of, visibility

IN_XLA = ("blocked", "reference")


def torchs(length, **sizes):
    arrays = inputs(length, **sizes)
    query, key, value, cotangent = (torch.from_numpy(np.array(x)).transpose(1, 2).requires_grad_() for x in arrays)
    mask = torch.from_numpy(np.array(visibility(length).mask()))[:, None]
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    gradients = torch.autograd.grad(out, (query, key, value), cotangent)
    return [x.detach().transpose(1, 2).numpy() for x in (out, *gradients)]


def torchs_with_sinks(length, window):
    """Of gpt-oss in transformers."""
    arrays, sinks = inputs(length), torch.from_numpy(np.array(sinks_of())).requires_grad_()
    query, key, value, cotangent = (torch.from_numpy(np.array(x)).transpose(1, 2).requires_grad_() for x in arrays)
    mask = torch.from_numpy(np.where(np.array(visibility(length).mask(window)), 0.0, -1e30))[:, None].float()
    layer = SimpleNamespace(num_key_value_groups=HEADS // KV_HEADS, sinks=sinks, training=False)
    out, _ = eager_attention_forward(layer, query, key, value, mask, HEAD_DIM**-0.5)
    gradients = torch.autograd.grad(out, (query, key, value, sinks), cotangent.transpose(1, 2))
    return [out.detach().numpy(), *(x.transpose(1, 2).numpy() for x in gradients[:3]), gradients[3].numpy()]


@pytest.mark.parametrize("length", [7, 300])
@pytest.mark.parametrize("backend", IN_XLA)
def test_sinks_equal_torchs(backend, length):
    found = results(backend, length, window=40, sinks=sinks_of())
    for ours, expected in zip(found, torchs_with_sinks(length, 40), strict=True):
        assert reference.relative(ours, expected) <= 2e-6


def test_sinks_by_hand():
    """Two positions, one head, all scores 0 and a sink of ln 2: it takes 2 of 3 parts, and then 2 of 4."""
    one = jnp.ones((1, 2), jnp.int32)
    seen = Visibility(jnp.asarray([[0, 1]]), jnp.asarray([[0, 1]]), one, one, in_order=True)
    value, zeros = jnp.asarray([3.0, 5.0]).reshape(1, 2, 1, 1), jnp.zeros((1, 2, 1, 1))
    for backend in IN_XLA:
        mixed = attention(zeros, zeros, value, seen, "float32", backend, sinks=jnp.log(jnp.asarray([2.0])))
        np.testing.assert_allclose(mixed.reshape(-1), [1.0, 2.0], rtol=1e-6)


@pytest.mark.parametrize("length", [7, 128, 300])  # within a block, one block, a last one that is short
@pytest.mark.parametrize("backend", IN_XLA)
def test_equals_torchs(backend, length):
    for found, expected in zip(results(backend, length), torchs(length), strict=True):
        assert reference.relative(found, expected) <= 2e-6


@pytest.mark.parametrize("value_dim", [5, 12])
@pytest.mark.parametrize("backend", IN_XLA)
def test_values_of_another_width(backend, value_dim):
    found = results(backend, 300, value_dim=value_dim)
    assert found[0].shape == (2, 300, HEADS, value_dim)
    for ours, expected in zip(found, torchs(300, value_dim=value_dim), strict=True):
        assert reference.relative(ours, expected) <= 2e-6


def test_long_rows_have_longer_blocks_and_the_same_result(monkeypatch):
    monkeypatch.setattr(blocked, "MIN_BLOCK", 4)
    monkeypatch.setattr(blocked, "MAX_BLOCKS", 5)
    assert len(blocked._blocks(103, 103, reach=0)) == 5
    for found, expected in zip(results("blocked", 103), torchs(103), strict=True):
        assert reference.relative(found, expected) <= 2e-6


def test_keys_before_a_window_are_not_read():
    """Blocks of 128 queries behind 10 slots of a cache, each of which sees 5: by hand."""
    assert blocked._blocks(300, 310, reach=5) == [
        (slice(0, 128), slice(6, 138)),
        (slice(128, 256), slice(134, 266)),
        (slice(256, 300), slice(262, 310)),
    ]
    assert blocked._blocks(100, 100, reach=40) == [(slice(0, 100), slice(0, 100))]


def test_bfloat16_products_are_near_and_the_same_for_both_backends():
    exact = torchs(150)
    for backend in IN_XLA:
        for found, expected in zip(results(backend, 150, "bfloat16"), exact, strict=True):
            assert 1e-4 < reference.relative(found, expected) < 0.02


def test_blocked_never_makes_a_whole_row_of_scores():
    """Nor reads keys behind a block: the largest array is a block of queries with the keys before its end."""
    length, block = 512, blocked.MIN_BLOCK
    query, key, value, _ = inputs(length)
    seen = visibility(length)

    def largest(backend):
        def loss(*arrays):
            return attention(*arrays, seen, "float32", backend).sum()

        return max(programs.result_sizes(jax.grad(loss, argnums=(0, 1, 2)), query, key, value))

    assert largest("reference") == 2 * HEADS * length * length
    assert largest("blocked") == 2 * HEADS * block * length


def test_no_mask_is_kept_for_the_backward_pass():
    """Nor is one made but by the reference."""
    length = 200
    query, key, value, _ = inputs(length)

    def read(backend):
        return lambda *arrays: attention(*arrays, visibility(length), "float32", backend, 30)

    def masks(arrays):
        return [x for x in arrays if x.dtype == bool and x.shape[-2:] == (length, length)]

    for backend in IN_XLA:
        _, pull = jax.vjp(read(backend), query, key, value)
        assert not masks(jax.tree.leaves(pull))
        equations = programs.equations(read(backend), query, key, value)
        made = masks(v.aval for equation in equations for v in equation.outvars if hasattr(v.aval, "shape"))
        assert bool(made) == (backend == "reference")


def test_a_cache_is_read_with_whole_scores():
    """Keys that are not the queries' slots have no order that blocks could use."""
    length = 9
    query, key, value, _ = inputs(length)
    seen = visibility(length)
    last = Visibility(
        seen.query_positions[:, -1:],
        seen.key_positions,
        seen.query_segments[:, -1:],
        seen.key_segments,
    )
    whole = results("reference", length)[0]
    found = attention(query[:, -1:], key, value, last, "float32", "blocked")
    np.testing.assert_allclose(found[:, 0], whole[:, -1], atol=1e-6)


def test_a_grown_cache_is_read_in_blocks():
    """The last 200 of 300 slots ask, the first 100 are from before; blocks give what whole scores give."""
    length, before = 300, 100
    query, key, value, _ = inputs(length, value_dim=12)
    positions, segments = jnp.arange(length)[None].repeat(2, 0), jnp.ones((2, length), jnp.int32)
    asked = {
        grown: Visibility(positions[:, before:], positions, segments[:, before:], segments, in_order=True, grown=grown)
        for grown in (False, True)
    }
    results = [
        attention(query[:, before:], key, value, asked[grown], "float32", backend, window, sinks=sinks)
        for backend, grown in (("reference", False), ("blocked", False), ("blocked", True))
        for window, sinks in ((0, None), (30, None), (0, sinks_of() + 5))
    ]
    for number in (3, 6):
        for of_case in range(3):
            np.testing.assert_allclose(results[number + of_case], results[of_case], atol=1e-5)
    assert np.abs(results[0] - results[1]).max() > 0.1  # the window counts
    assert np.abs(results[0] - results[2]).max() > 0.1  # and so do sinks


def test_attention_by_hand():
    """Two positions, one head of width 1, all scores 0: position 1 averages both values, position 0 sees itself."""
    one = jnp.ones((1, 2), jnp.int32)
    visibility = Visibility(jnp.asarray([[0, 1]]), jnp.asarray([[0, 1]]), one, one)
    value = jnp.asarray([2.0, 4.0]).reshape(1, 2, 1, 1)
    mixed = attention(jnp.zeros((1, 2, 1, 1)), jnp.ones((1, 2, 1, 1)), value, visibility, "float32")
    np.testing.assert_allclose(mixed.reshape(-1), [2.0, 3.0])


def test_visibility_by_hand():
    """Two documents of two tokens and one slot of padding."""
    positions, segments = jnp.asarray([[0, 1, 0, 1, 2]]), jnp.asarray([[1, 1, 2, 2, 0]])
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
    visibility = Visibility(positions, positions, segments, segments)
    np.testing.assert_array_equal(visibility.mask()[0], expected)
    np.testing.assert_array_equal(visibility.mask(0, slice(1, 4), slice(2))[0], [row[:2] for row in expected[1:4]])


def test_a_shared_beginning_is_seen_by_all_of_its_segments():
    """Two tokens that segments 2 and 3 begin with, then a token of each, and padding."""
    positions, segments = jnp.asarray([[0, 1, 2, 2, 9]]), jnp.asarray([[1, 1, 2, 3, 0]])
    parents = jnp.asarray([[1, 1, 1, 1, 0]])
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [0, 0, 0, 0, 1]]
    np.testing.assert_array_equal(Visibility(positions, positions, segments, segments, parents).mask()[0], expected)
