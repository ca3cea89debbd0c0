"""The short convolution: equal to torch's for each document of a row, with what was read before, and from a parent."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.qwen3_next.modeling_qwen3_next import causal_conv1d_fn

from sft_jax.models.delta.convolution import convolved, last_inputs
from tests.models.delta import rows

WIDTH, CHANNELS, TOLERANCE = 4, 6, 1e-6


def _arrays(length, batch=1):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, length, CHANNELS)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(rng.standard_normal((WIDTH, CHANNELS)), jnp.float32)


def _of_torch(x, kernel):
    of_torch = lambda array: torch.tensor(np.array(array))
    wide, weights = of_torch(jnp.moveaxis(x, 1, 2)), of_torch(kernel.T)
    return np.moveaxis(causal_conv1d_fn(wide, weights, activation="silu").numpy(), 1, 2)


def _assert_equal(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("length", [1, 3, 20])
def test_one_text(length):
    x, kernel = _arrays(length, batch=2)
    _assert_equal(convolved(x, kernel, rows.one_segment(2, length), None), _of_torch(x, kernel))


SPANS = [(0, 5), (5, 6), (6, 8), (10, 19)]


@pytest.mark.parametrize("before", [None, jnp.full((1, WIDTH - 1, CHANNELS), 7.0)])
def test_documents_of_a_packed_row(before):
    """Neither those before nor what was read before the row, which none goes on from, are read."""
    x, kernel = _arrays(20)
    segments = np.zeros((1, 20), np.int32)
    for number, (begin, end) in enumerate(SPANS, 1):
        segments[:, begin:end] = number
    ours = convolved(x, kernel, rows.order(segments, carried=[9]), before)
    leaking = convolved(x, kernel, rows.order(segments > 0), None)
    for begin, end in SPANS:
        theirs = _of_torch(x[:, begin:end], kernel)
        _assert_equal(ours[:, begin:end], theirs)
        if begin:
            assert np.max(np.abs(leaking[:, begin:end] - theirs)) > 100 * TOLERANCE


@pytest.mark.parametrize("pieces", [(1, 1, 1, 1, 1, 5), (2, 3, 5), (7, 3)])
def test_pieces_go_on(pieces):
    """Also with padding in front and behind."""
    x, kernel = _arrays(10)
    whole, before, done = _of_torch(x, kernel), jnp.zeros((1, WIDTH - 1, CHANNELS)), 0
    for number, size in enumerate(pieces):
        piece = jnp.pad(x[:, done : done + size], ((0, 0), (1, 2), (0, 0)), constant_values=9.0)
        segments = np.pad(np.ones((1, size), np.int32), ((0, 0), (1, 2)))
        order = rows.order(segments, carried=[int(number > 0)])
        _assert_equal(convolved(piece, kernel, order, before)[:, 1 : 1 + size], whole[:, done : done + size])
        before, done = last_inputs(piece, order, before, None)[:, 0], done + size
        inputs = np.concatenate([np.zeros((1, WIDTH - 1, CHANNELS), np.float32), x[:, :done]], axis=1)
        _assert_equal(before, inputs[:, -(WIDTH - 1) :])


def test_segments_go_on_from_their_parent():
    x, kernel = _arrays(12)
    segments = [[1, 1, 2, 2, 2, 0, 3, 4, 4, 4, 5, 5]]
    parents = [[1, 1, 1, 1, 1, 0, 1, 4, 4, 4, 4, 4]]
    order = rows.order(segments, parents)
    ours = convolved(x, kernel, order, None)
    texts = {(0, 1): 2, (0, 1, 2, 3, 4): 3, (0, 1, 6): 1, (7, 8, 9): 3, (7, 8, 9, 10, 11): 2}
    for places, own in texts.items():
        _assert_equal(ours[:, np.asarray(places)[-own:]], _of_torch(x[:, np.asarray(places)], kernel)[:, -own:])
    last = last_inputs(x, order, jnp.zeros((1, WIDTH - 1, CHANNELS)), jnp.asarray([[4, 6, 1]]))
    _assert_equal(last[0, 0], x[0, np.asarray([2, 3, 4])])
    _assert_equal(last[0, 1], x[0, np.asarray([0, 1, 6])])
    _assert_equal(last[0, 2], np.concatenate([np.zeros((1, CHANNELS), np.float32), x[0, :2]]))
