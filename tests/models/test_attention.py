"""Attention: who sees whom, by hand; both backends against torch's, forward and backward, over packed sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sft_jax.models import blocked_attention
from sft_jax.models.attention import attention
from sft_jax.models.config import ATTENTION_BACKENDS
from sft_jax.models.visibility import Visibility
from tests.models import programs, reference

HEADS, KV_HEADS, HEAD_DIM = 6, 2, 8


def packed_visibility(length):
    """Sequence 0: two segments and padding behind them; sequence 1: one segment."""
    first, second = length // 3, length // 2
    segments = np.ones((2, length), np.int32)
    segments[0, first : first + second], segments[0, first + second :] = 2, 0
    positions = np.tile(np.arange(length, dtype=np.int32), (2, 1))
    positions[0, first:] -= first
    positions[0, first + second :] -= second
    return Visibility(*(jnp.asarray(x) for x in (positions, positions, segments, segments)), in_order=True)


def inputs(length, seed=0):
    rng = np.random.default_rng(seed)
    heads = (HEADS, KV_HEADS, KV_HEADS, HEADS)  # query, key, value, cotangent
    return [jnp.asarray(rng.normal(size=(2, length, n, HEAD_DIM)), jnp.float32) for n in heads]


def ours(backend, length, matmul_dtype="float32"):
    query, key, value, cotangent = inputs(length)
    visibility = packed_visibility(length)

    def run(*arrays):
        return attention(*arrays, visibility, matmul_dtype, backend)

    @reference.jit
    def both(query, key, value):
        out, pull = jax.vjp(run, query, key, value)
        return out, *pull(cotangent)

    return [np.asarray(x) for x in both(query, key, value)]


def torchs(length):
    arrays = inputs(length)
    query, key, value, cotangent = (torch.from_numpy(np.array(x)).transpose(1, 2).requires_grad_() for x in arrays)
    mask = torch.from_numpy(np.array(packed_visibility(length).mask()))[:, None]
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    gradients = torch.autograd.grad(out, (query, key, value), cotangent)
    return [x.detach().transpose(1, 2).numpy() for x in (out, *gradients)]


@pytest.mark.parametrize("length", [7, 128, 300])  # within a block, one block, a last one that is short
@pytest.mark.parametrize("backend", ATTENTION_BACKENDS)
def test_equals_torchs(backend, length):
    for found, expected in zip(ours(backend, length), torchs(length), strict=True):
        assert reference.relative(found, expected) <= 2e-6


def test_long_rows_have_longer_blocks_and_the_same_result(monkeypatch):
    monkeypatch.setattr(blocked_attention, "MIN_BLOCK", 4)
    monkeypatch.setattr(blocked_attention, "MAX_BLOCKS", 5)
    assert len(blocked_attention._blocks(103, 103)) == 5
    for found, expected in zip(ours("blocked", 103), torchs(103), strict=True):
        assert reference.relative(found, expected) <= 2e-6


def test_bfloat16_products_are_near_and_the_same_for_both_backends():
    exact = torchs(150)
    for backend in ATTENTION_BACKENDS:
        for found, expected in zip(ours(backend, 150, "bfloat16"), exact, strict=True):
            assert 1e-4 < reference.relative(found, expected) < 0.02


def test_blocked_never_makes_a_whole_row_of_scores():
    """Nor reads keys behind a block: the largest array is a block of queries with the keys before its end."""
    length, block = 512, blocked_attention.MIN_BLOCK
    query, key, value, _ = inputs(length)
    visibility = packed_visibility(length)

    def largest(backend):
        def loss(*arrays):
            return attention(*arrays, visibility, "float32", backend).sum()

        return max(programs.result_sizes(jax.grad(loss, argnums=(0, 1, 2)), query, key, value))

    assert largest("whole") == 2 * HEADS * length * length
    assert largest("blocked") == 2 * HEADS * block * length


def test_a_cache_is_read_with_whole_scores():
    """Keys that are not the queries' slots have no order that blocks could use."""
    length = 9
    query, key, value, _ = inputs(length)
    visibility = packed_visibility(length)
    last = Visibility(
        visibility.query_positions[:, -1:],
        visibility.key_positions,
        visibility.query_segments[:, -1:],
        visibility.key_segments,
    )
    whole = ours("whole", length)[0]
    found = attention(query[:, -1:], key, value, last, "float32", "blocked")
    np.testing.assert_allclose(found[:, 0], whole[:, -1], atol=1e-6)


def test_a_grown_cache_is_read_in_blocks():
    """The last 200 of 300 slots ask, the first 100 are from before; blocks give what whole scores give."""
    length, before = 300, 100
    query, key, value, _ = inputs(length)
    positions, segments = jnp.arange(length)[None].repeat(2, 0), jnp.ones((2, length), jnp.int32)
    asked = {
        grown: Visibility(positions[:, before:], positions, segments[:, before:], segments, in_order=True, grown=grown)
        for grown in (False, True)
    }
    results = [
        attention(query[:, before:], key, value, asked[grown], "float32", backend, window)
        for backend, grown in (("whole", False), ("blocked", False), ("blocked", True))
        for window in (None, 30)
    ]
    for number in (2, 4):
        np.testing.assert_allclose(results[number], results[0], atol=1e-5)
        np.testing.assert_allclose(results[number + 1], results[1], atol=1e-5)
    assert np.abs(results[0] - results[1]).max() > 0.1  # the window counts


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
    np.testing.assert_array_equal(visibility.mask(None, slice(1, 4), slice(2))[0], [row[:2] for row in expected[1:4]])


def test_a_shared_beginning_is_seen_by_all_of_its_segments():
    """Two tokens that segments 2 and 3 begin with, then a token of each, and padding."""
    positions, segments = jnp.asarray([[0, 1, 2, 2, 9]]), jnp.asarray([[1, 1, 2, 3, 0]])
    parents = jnp.asarray([[1, 1, 1, 1, 0]])
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [0, 0, 0, 0, 1]]
    np.testing.assert_array_equal(Visibility(positions, positions, segments, segments, parents).mask()[0], expected)
