"""Multi-head latent attention as a layer of its own, against DeepSeek V3's in transformers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AxisType
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

from sft_jax.models import rope
from sft_jax.models.config import DecoderConfig, Execution, YarnScaling
from sft_jax.models.mla import LatentAttention
from sft_jax.models.partitioning import MESH_AXES, spec_of
from sft_jax.models.visibility import Visibility
from tests.models import reference

MODEL, HEADS, PLAIN, ROTATED, VALUE, KV_RANK, QUERY_RANK = 32, 4, 12, 8, 10, 16, 24
SEQUENCES, LENGTH = 2, 20
THEIRS = {
    "hidden_size": MODEL,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "qk_nope_head_dim": PLAIN,
    "qk_rope_head_dim": ROTATED,
    "v_head_dim": VALUE,
    "kv_lora_rank": KV_RANK,
    "q_lora_rank": QUERY_RANK,
    "rope_interleave": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
}
OURS = {
    "vocab_size": 1,
    "num_layers": 1,
    "model_dim": MODEL,
    "num_heads": HEADS,
    "num_kv_heads": HEADS,
    "head_dim": PLAIN + ROTATED,
    "value_dim": VALUE,
    "ffn_dim": 1,
    "kv_rank": KV_RANK,
    "query_rank": QUERY_RANK,
    "rope_dim": ROTATED,
    "rope_interleaved": True,
    "rope_theta": 100.0,
}
YARN = {"factor": 8.0, "original_max_position_embeddings": 16, "mscale": 1.0, "mscale_all_dim": 1.0}
# name -> (changes of theirs, changes of ours)
CASES = {
    "latent queries": ({}, {}),
    "queries without": ({"q_lora_rank": None}, {"query_rank": 0}),
    "rotated by halves": ({"rope_interleave": False}, {"rope_interleaved": False}),
    "biases": ({"attention_bias": True}, {"qkv_bias": True, "out_bias": True}),
    "yarn": (
        {"rope_parameters": YARN | {"rope_type": "yarn", "rope_theta": 100.0}},
        {
            "rope_scaling": YarnScaling(8.0, 16),
            "query_scale": (PLAIN + ROTATED) ** -0.5 * (0.1 * np.log(8.0) + 1) ** 2,
        },
    ),
}
PATHS = {
    "q_proj": "query",
    "q_a_proj": "query_a",
    "q_b_proj": "query_b",
    "kv_a_proj_with_mqa": "key_value_a",
    "kv_b_proj": "key_value_b",
    "o_proj": "out",
    "q_a_layernorm": "query_a_norm",
    "kv_a_layernorm": "key_value_a_norm",
}


def ours_of(tensors):
    flat = {}
    for name, tensor in tensors.items():
        module, kind = name.split(".")
        leaf = "scale" if "norm" in module else {"weight": "kernel", "bias": "bias"}[kind]
        flat[f"{PATHS[module]}/{leaf}"] = jnp.asarray(np.array(tensor.T))
    return unflatten_dict(flat, sep="/")


def config_of(name, **changes):
    return DecoderConfig(**OURS | CASES[name][1] | changes)


def applied(config, params, x, backend="blocked"):
    positions = jnp.tile(jnp.arange(x.shape[1])[None], (x.shape[0], 1))
    ones = jnp.ones_like(positions)
    seen = Visibility(positions, positions, ones, ones, in_order=True)
    layer = LatentAttention(config, Execution(attention_backend=backend), None)
    rotary = rope.rotary_of(config)
    rotation = rope.rotation(positions, rope.frequencies(rotary), rope.magnitude(rotary))
    return layer.apply({"params": params}, x, rotation, seen, None, None, None)[0]


@functools.cache
def torchs(name):
    """Parameters as ours, inputs, cotangent; what torch makes of them, and its gradients: of parameters, of inputs."""
    config = DeepseekV3Config(**THEIRS | CASES[name][0])
    config._attn_implementation = "eager"
    layer, rotary = DeepseekV3Attention(config, 0), DeepseekV3RotaryEmbedding(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(2.0 * parameter.shape[-1] ** -0.5 * noise if parameter.ndim > 1 else 1 + 0.3 * noise)
    rng = np.random.default_rng(0)
    x, cotangent = (rng.normal(size=(SEQUENCES, LENGTH, MODEL)).astype(np.float32) for _ in range(2))
    inputs = torch.from_numpy(x).requires_grad_()
    mask = torch.full((LENGTH, LENGTH), -1e30).triu(1)[None, None]
    out, _ = layer(inputs, rotary(inputs, torch.arange(LENGTH)[None]), mask)
    out.backward(torch.from_numpy(cotangent))
    gradients = ours_of({label: parameter.grad.numpy() for label, parameter in layer.named_parameters()})
    params = ours_of({label: tensor.numpy() for label, tensor in layer.state_dict().items()})
    return params, jnp.asarray(x), cotangent, out.detach().numpy(), gradients, inputs.grad.numpy()


@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients_equal_torchs(name):
    params, x, cotangent, expected, of_params, of_x = torchs(name)

    @reference.jit
    def both(params, x, cotangent):
        out, pull = jax.vjp(functools.partial(applied, config_of(name)), params, x)
        return out, *pull(cotangent)

    found, gradients, gradient = both(params, x, cotangent)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert reference.relative(gradient, of_x) < 1e-5
    ours, theirs = flatten_dict(gradients), flatten_dict(of_params)
    assert ours.keys() == theirs.keys()
    assert max(reference.relative(ours[path], theirs[path]) for path in theirs) < 1e-5


@pytest.mark.parametrize(
    ("name", "off"),
    [
        ("latent queries", {"rope_interleaved": False}),
        ("latent queries", {"rope_theta": 1e12}),
        ("latent queries", {"latent_norm_eps": 0.3}),
        ("yarn", {"query_scale": 0.0}),
        ("yarn", {"rope_scaling": None}),
    ],
)
def test_what_is_left_out_is_noticed(name, off):
    params, x, _, expected, *_ = torchs(name)
    found = reference.jit(functools.partial(applied, config_of(name, **off)))(params, x)
    assert np.abs(found - expected).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "splash", "triton"])
def test_every_backend_has_values_of_another_width(backend):
    params, x, *_ = torchs("latent queries")
    config = config_of("latent queries")
    found, expected = (
        reference.jit(functools.partial(applied, config, backend=name))(params, x) for name in (backend, "blocked")
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("sizes", [(1, 2, 1, 1, 4), (1, 1, 2, 2, 2)])
def test_split_over_a_mesh_it_is_the_same(sizes):
    params, x, *_ = torchs("latent queries")
    function = functools.partial(applied, config_of("latent queries"))
    expected = reference.jit(function)(params, x)
    mesh = jax.make_mesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
    with jax.set_mesh(mesh):
        found = reference.jit(function)(jax.device_get(params), jax.device_get(x))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_where_its_weights_lie():
    """What is made of a latent vector is split by heads; the vector itself is whole on every device."""
    sizes = {"replica": 1, "fsdp": 2, "expert": 1, "context": 1, "tensor": 4}
    split = lambda name: spec_of(f"layers/attention/{name}/kernel", (2, 32, 32), sizes)
    assert [split(name)[2] for name in ("query", "query_b", "key_value_b")] == ["tensor"] * 3
    assert [split(name)[2] for name in ("query_a", "key_value_a")] == [None] * 2
    assert split("out")[1] == "tensor"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 2}, "num_kv_heads=2 must be num_heads=4, with a kv_rank"),
        ({"attention_sinks": True}, "attention_sinks=True must be False, with a kv_rank"),
        ({"qk_norm": "head"}, "qk_norm='head' must be 'none', with a kv_rank"),
        ({"kv_rank": 0}, "query_rank=24, value_dim=10, rope_interleaved=True: of attention with a kv_rank"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**OURS | changes)
