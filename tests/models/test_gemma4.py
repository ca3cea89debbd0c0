"""What Gemma 4 has of its own: which layers share keys, what is asked of a config, and how large it is."""

import copy
import dataclasses
import math

import numpy as np
import pytest

from sft_jax.models import Execution
from sft_jax.models.attention.choice import choose_backend, problem
from sft_jax.models.cache import init_cache
from sft_jax.models.families import get_family
from sft_jax.models.initial import parameter_shapes
from sft_jax.models.layouts import UNROLLED, spans_of
from sft_jax.models.rope import Rotary, frequencies, rotaries
from sft_jax.models.variables import is_buffer
from sft_jax.models.vocabulary import grown
from sft_jax.planning.flops import weights_by_product
from sft_jax.training.gradient_check import small
from tests.models import families, reference
from tests.models.test_published_families import GEMMA4_26B, GEMMA4_31B, GEMMA4_E2B, GEMMA4_E4B

PUBLISHED = {"31B": GEMMA4_31B, "26B-A4B": GEMMA4_26B, "E2B": GEMMA4_E2B, "E4B": GEMMA4_E4B}


def decoder_of(fields):
    return get_family(fields).decoder_config(copy.deepcopy(fields))


def test_layers_of_e2b_read_the_last_keys_before_them_with_their_window():
    config = decoder_of(GEMMA4_E2B)
    layers = [config.of_layer(number) for number in range(35)]
    assert [number for number, layer in enumerate(layers) if layer.gives_keys] == [13, 14]
    assert [layer.reads_keys for layer in layers] == [False] * 15 + [True] * 20
    assert {layer.window for layer in layers[13:14]} == {512}
    assert {layer.window for layer in layers[14:15]} == {0}
    assert {layer.ffn_dim for layer in layers[:15]} == {6144}
    assert {layer.ffn_dim for layer in layers[15:]} == {12288}
    cache = init_cache(config, Execution(layer_layout="unrolled"), 1, 8)
    assert [number for number, layer in enumerate(cache.layers) if layer is not None] == list(range(15))
    assert cache.layers[14].key.shape == (1, 1, 8, 512)
    assert cache.layers[13].key.shape == (1, 1, 8, 256)


@pytest.mark.parametrize(("name", "layers"), [("31B", 6), ("26B-A4B", 6), ("E2B", 13), ("E4B", 15)])
def test_the_program_has_few_of_the_layers(name, layers):
    assert sum(span.period for span in spans_of(decoder_of(PUBLISHED[name]))) <= layers


def test_a_reader_without_a_giver_is_refused():
    config = dataclasses.replace(decoder_of(families.hf_config("gemma4_text")), layer_overrides=(), reads_keys=True)
    with pytest.raises(ValueError, match="a layer with window=5 reads keys, and no layer before it gives it some"):
        parameter_shapes(config)


def test_global_layers_rotate_a_part_of_wider_heads():
    windowed, whole = rotaries(decoder_of(GEMMA4_31B))
    assert (windowed.theta, windowed.dim, windowed.scaling) == (1e4, 256, None)
    found = frequencies(whole)
    assert found.shape == (256,)
    assert not found[64:].any()
    np.testing.assert_allclose(found[:64], frequencies(Rotary(1e6, 512))[:64])


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_in_products_are_the_kernels(name):
    """Of each layer and of all; of experts those that a token takes."""
    config = decoder_of(PUBLISHED[name])
    shapes = reference.flat(parameter_shapes(config, UNROLLED))
    share = lambda path: config.experts_per_token / config.num_experts if "experts/" in path else 1
    kernels = {
        path: math.prod(leaf.shape) * (1 if "router" in path else share(path))
        for path, leaf in shapes.items()
        if path.endswith("kernel")
    }
    assert config.matmul_params() == (sum(kernels.values()), 262144 * config.model_dim)
    for number in (0, config.num_layers - 1):
        own = sum(count for path, count in kernels.items() if path.startswith(f"layers_{number}/"))
        assert sum(weights_by_product(config.of_layer(number)).values()) == own


@pytest.mark.parametrize(("platform", "kernel"), [("tpu", "splash"), ("gpu", "triton")])
def test_kernels_have_no_room_for_heads_of_512(platform, kernel):
    config = decoder_of(GEMMA4_31B)
    assert config.head_dim == 256
    assert problem(kernel, platform, config, "bfloat16").endswith("and those of this model are 512 wide")
    assert choose_backend("auto", platform, config, "bfloat16") == "blocked"


def test_the_small_model_of_the_gradient_check_has_givers_and_readers():
    config = small(decoder_of(GEMMA4_E2B), devices=8)
    layers = [config.of_layer(number) for number in range(config.num_layers)]
    assert [(layer.gives_keys, layer.reads_keys) for layer in layers] == [
        (False, False),
        (False, False),
        (True, False),
        (True, False),
        (False, True),
        (False, True),
    ]
    assert parameter_shapes(config)["per_layer"]["embedding"].shape == (1024, 6 * 256)


def test_scales_of_layers_are_no_weights():
    config = decoder_of(families.hf_config("gemma4_text"))
    buffers = [path for path in reference.flat(parameter_shapes(config, UNROLLED)) if is_buffer(path)]
    assert buffers == [f"layers_{number}/output_scale" for number in range(4)]


def test_new_tokens_are_refused_where_there_is_a_second_embedding():
    with pytest.raises(ValueError, match=r"model\.new_tokens: this model has a second embedding of each token"):
        grown(decoder_of(GEMMA4_E2B), range(262144, 262145))
    assert grown(decoder_of(GEMMA4_E2B), range(262144, 262144)).vocab_size == 262144  # with tokens that it has
    assert grown(decoder_of(GEMMA4_31B), range(262144, 262145)).vocab_size == 262144 + 128


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention='all'"),
        ({"layer_types": ["sliding_attention"] * 42}, "'sliding_attention' as the last of its layer_types"),
        ({"vocab_size_per_layer_input": 128}, "vocab_size_per_layer_input=128 and vocab_size=262144"),
        ({"num_kv_shared_layers": 42}, "num_kv_shared_layers=42; expected a layer of each of layer_types before"),
        ({"num_kv_shared_layers": 38}, "num_kv_shared_layers=38; expected a layer of each of layer_types before"),
        ({"per_layer_config": {"5": {"hidden_size": 8}}}, "per_layer_config=.*; implemented: head_dim, num_key_value"),
        ({"per_layer_config": {"42": {"head_dim": 8}}}, "by the number of a layer from 0 to 41"),
        ({"enable_moe_block": True}, "no 'num_experts', which model_type='gemma4_text' needs"),
        ({"hidden_activation": "silu"}, "hidden_activation='silu'"),
        ({"laurel_rank": 64}, "not implemented for model_type='gemma4_text': laurel_rank=64"),
    ],
)
def test_configs_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        decoder_of(GEMMA4_E4B | changes)


def test_experts_beside_layers_of_double_width_are_refused():
    with pytest.raises(ValueError, match="use_double_wide_mlp=True"):
        decoder_of(GEMMA4_26B | {"use_double_wide_mlp": True})


def test_a_config_that_says_little_is_what_transformers_takes_it_for():
    """The pattern of windows, the ropes, and heads of 512 where there is no window."""
    fields = {
        "model_type": "gemma4_text",
        "vocab_size": 262144,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    }
    config = decoder_of(fields)
    assert config.layer_windows == (512,) * 5 + (0, 512, 0)
    assert [config.of_layer(number).head_dim for number in (0, 5, 7)] == [256, 512, 512]
    assert config.per_layer_dim == 256
    assert decoder_of({**fields, "model_type": "gemma4_unified_text"}).per_layer_dim == 0
