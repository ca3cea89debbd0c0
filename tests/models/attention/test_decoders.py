"""Whole decoders with the kernels: windows by kind of layer, softcaps and packed sequences, scanned or not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.models.config import DecoderConfig, Execution, YarnScaling
from sft_jax.models.decoder import Decoder
from sft_jax.models.layouts import to_layout
from tests.models import reference

LLAMA_LIKE = DecoderConfig(64, 2, 32, 4, 2, 8, 48)
GEMMA_LIKE = DecoderConfig(
    64, 4, 32, 4, 2, 8, 48, layer_windows=(20, 0, 20, 0), attention_softcap=5.0, query_scale=0.3, norm_placement="both"
)
ONE_WINDOW = DecoderConfig(64, 2, 32, 4, 2, 8, 48, layer_windows=(20, 20))
# Rotations by kind of layer, queries that grow, factors on residuals.
OLMO3_LIKE = DecoderConfig(
    64,
    4,
    32,
    4,
    2,
    8,
    48,
    layer_windows=(20, 0, 20, 0),
    rope_scaling=YarnScaling(4.0, 32, attention_factor=1.1),
    local_rope_theta=100.0,
    query_growth=0.5,
    query_growth_positions=16,
    residual_scale=0.6,
    norm_placement="post",
    qk_norm="flat",
)
GPT_OSS_LIKE = DecoderConfig(64, 2, 32, 4, 2, 8, 48, layer_windows=(20, 0), attention_sinks=True)
LENGTH = 150


def batch():
    """Two packed examples and padding; and one example."""
    tokens = np.random.default_rng(0).integers(0, 64, (2, LENGTH)).astype(np.int32)
    segments, positions = np.ones((2, LENGTH), np.int32), np.tile(np.arange(LENGTH, dtype=np.int32), (2, 1))
    segments[0, 60:], positions[0, 60:] = 2, positions[0, 60:] - 60
    segments[0, 120:] = 0
    return tokens, positions, segments


@functools.cache
def parameters(config):
    """Initial ones three times as large: attention that looks somewhere."""
    params = reference.jit(Decoder(config).init)(jax.random.key(0), batch()[0])["params"]
    return jax.tree.map(lambda x: 3 * x if x.ndim > 2 else x, params)


@functools.cache
def gradient(config, backend, layout, remat):
    """Of a sum over what is no padding, layer by layer."""
    model = Decoder(config, Execution(layer_layout=layout, remat=remat, attention_backend=backend))
    tokens, positions, segments = batch()

    def loss(params):
        hidden, _ = model.apply({"params": params}, tokens, positions, segments, method="hidden")
        return jnp.sum(jnp.sin(hidden) * (segments > 0)[..., None])

    gradients = to_layout(reference.jit(jax.grad(loss))(to_layout(parameters(config), model.layout)), "unrolled")
    return {name: part for name, part in gradients.items() if name != "head"}  # which hidden states do not go through


def largest_difference(ours, theirs):
    return max(jax.tree.leaves(jax.tree.map(reference.relative, ours, theirs)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "backend", "layout", "remat"),
    [
        (GEMMA_LIKE, "splash", "scan", "attention"),
        (GEMMA_LIKE, "splash", "unrolled", "full"),
        (GEMMA_LIKE, "triton", "scan", "full"),
        (GEMMA_LIKE, "triton", "unrolled", "attention"),
        (ONE_WINDOW, "splash", "scan", "none"),
        (OLMO3_LIKE, "splash", "scan", "none"),
        (OLMO3_LIKE, "triton", "unrolled", "none"),
        (GPT_OSS_LIKE, "splash", "scan", "attention"),
        (GPT_OSS_LIKE, "triton", "unrolled", "full"),
        (LLAMA_LIKE, "splash", "scan", "full"),
        (LLAMA_LIKE, "triton", "scan", "none"),
    ],
)
def test_gradients_are_those_of_attention_in_blocks(config, backend, layout, remat):
    expected = gradient(config, "blocked", "scan", "none")
    assert largest_difference(gradient(config, backend, layout, remat), expected) < 1e-5


@pytest.mark.slow
def test_windows_by_kind_of_layer_count():
    """The same weights with the windows of other layers are another function, by far."""
    other = DecoderConfig(**vars(GEMMA_LIKE) | {"layer_windows": (0, 20, 0, 20)})
    swapped = gradient(other, "blocked", "scan", "none")
    assert largest_difference(swapped, gradient(GEMMA_LIKE, "blocked", "scan", "none")) > 1e-2
