"""The layer: equal to torch's, and the same in pieces, in packed rows, and on a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from sft_jax.models.cache import DeltaCache
from sft_jax.models.config import DecoderConfig, Execution
from sft_jax.models.context import dealt, natural
from sft_jax.models.delta import GatedDeltaNet
from sft_jax.models.partitioning import MESH_AXES
from sft_jax.models.visibility import Visibility
from sft_jax.sharding import make_mesh

TOLERANCE, WIDTH, LENGTH = 1e-5, 16, 80
CONFIG = DecoderConfig(
    vocab_size=1,
    num_layers=1,
    model_dim=WIDTH,
    num_heads=1,
    num_kv_heads=1,
    head_dim=2,
    ffn_dim=1,
    norm_offset=1.0,
    mixer="delta",
    delta_key_heads=2,
    delta_value_heads=4,
    delta_key_dim=6,
    delta_value_dim=5,
)
NET = GatedDeltaNet(CONFIG, Execution(), None)


def _visibility(segments, parents=None, parts=1) -> Visibility:
    segments = dealt(jnp.asarray(segments, jnp.int32), parts)
    return Visibility(segments, segments, segments, segments, parents, in_order=True, dealt=parts)


@jax.jit
def _apply(params, x, visibility, cache=None):
    return NET.apply({"params": params}, x, visibility, cache)


@pytest.fixture(scope="module")
def params():
    x = jnp.zeros((1, 1, WIDTH))
    shapes = jax.eval_shape(lambda: NET.init(jax.random.key(0), x, _visibility([[1]]), None))["params"]
    rng = np.random.default_rng(0)
    made = {path: rng.standard_normal(leaf.shape) for path, leaf in flatten_dict(shapes).items()}
    by = {path: (8 if path[0] == "out" else 2) if path[-1] == "kernel" else 1 for path in made}  # results of about 1
    scaled = {path: array / by[path] for path, array in made.items()}
    return unflatten_dict({path: jnp.asarray(array, jnp.float32) for path, array in scaled.items()})


def _inputs(batch, length=LENGTH):
    return jnp.asarray(np.random.default_rng(1).standard_normal((batch, length, WIDTH)), jnp.float32)


def _empty(batch):
    return DeltaCache(jnp.zeros((batch, 4, 6, 5)), jnp.zeros((batch, 3, 44)), jnp.zeros(batch, jnp.int32))


def test_documents_of_a_packed_row_are_as_by_themselves(params):
    x, segments = _inputs(1), np.zeros((1, LENGTH), np.int32)
    spans = [(0, 3), (3, 30), (33, 34), (34, 78)]
    for number, (begin, end) in enumerate(spans, 1):
        segments[:, begin:end] = number
    ours, leaking = (_apply(params, x, _visibility(ids))[0] for ids in (segments, segments > 0))
    for begin, end in spans:
        alone, _ = _apply(params, x[:, begin:end], _visibility(np.ones((1, end - begin))))
        np.testing.assert_allclose(ours[:, begin:end], alone, atol=TOLERANCE)
        if begin:
            assert np.max(np.abs(leaking[:, begin:end] - alone)) > 100 * TOLERANCE


def test_pieces_go_on(params):
    """Read into a cache a few tokens at a time, and one by one; rows that stand still keep their state."""
    x, cache, done, found = _inputs(2), _empty(2), 0, []
    whole, _ = _apply(params, x, _visibility(np.ones((2, LENGTH))))
    for size in (30, 1, 1, 17, 1, 1, 29):
        segments = np.ones((2, size), np.int32)
        idle, _ = _apply(params, x[:, :1], _visibility([[0], [0]]), cache)
        assert np.all(np.isfinite(idle))
        _, same = _apply(params, x[:, :1], _visibility([[0], [0]]), cache)
        for one, other in zip(jax.tree.leaves(same), jax.tree.leaves(cache), strict=True):
            np.testing.assert_array_equal(one, other)
        read, cache = _apply(params, x[:, done : done + size], _visibility(segments), cache)
        found.append(read)
        done += size
    np.testing.assert_allclose(jnp.concatenate(found, axis=1), whole, atol=TOLERANCE)
    another, _ = _apply(params, x[:, :1], _visibility([[2], [2]]), cache)  # a text of its own
    np.testing.assert_allclose(another, whole[:, :1], atol=TOLERANCE)


@pytest.mark.parametrize("shape", [(1, 2, 1, 2, 2), (1, 2, 1, 1, 4), (1, 1, 1, 8, 1)])
def test_on_a_mesh(params, shape):
    """Also where there are more devices than key heads, and where sequences are dealt out."""
    x, parts = _inputs(2), shape[3]
    segments = np.asarray([[1] * 50 + [2] * 30, [1] * 10 + [0] * 3 + [2] * 67])
    cotangent = jnp.cos(jnp.arange(WIDTH, dtype=jnp.float32))[None, None]

    def run(params, x, parts):
        loss = lambda params, x: jnp.sum(
            natural(NET.apply({"params": params}, dealt(x, parts), seen, None)[0], parts) * cotangent
        )
        seen = _visibility(segments, parts=parts)
        return jax.value_and_grad(loss, argnums=(0, 1))(params, x)

    compiled = jax.jit(run, static_argnums=2)
    expected = compiled(params, x, 1)
    mesh = make_mesh(dict(zip(MESH_AXES, shape, strict=True)), jax.devices())
    with jax.set_mesh(mesh):
        found = compiled(params, x, parts)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, found, expected)
