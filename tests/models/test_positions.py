"""How many positions a model knows: padding beyond them, and which limits can be lifted without another rotation."""

import copy
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from sft_jax.models import Decoder, Execution
from sft_jax.models.families import get_family
from sft_jax.models.positions import advice, with_positions
from tests.models import families, reference

YARN = {"rope_type": "yarn", "rope_theta": 10000.0}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["scan", "unrolled"])
def test_padding_beyond_the_last_position_reaches_nothing(layout):
    """GPT-2 with 8 positions, 5 tokens in a sequence of 16: logits and gradients are those of a sequence of 5."""
    fields = families.hf_config("gpt2") | {"n_positions": 8}
    config = get_family(fields).decoder_config(fields)
    model = Decoder(config, Execution(layer_layout=layout))
    tokens = np.arange(3, 8, dtype=np.int32)[None]
    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]

    def loss(params, tokens, segments):
        positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        logits = model.apply({"params": params}, tokens, positions, segments)
        return jnp.sum(jax.nn.log_softmax(logits)[:, :5, 9])

    padded, segments = np.zeros((1, 16), np.int32), np.zeros((1, 16), np.int32)
    padded[:, :5], segments[:, :5] = tokens, 1
    expected = jax.value_and_grad(loss)(params, tokens, np.ones((1, 5), np.int32))
    found = jax.value_and_grad(loss)(params, padded, segments)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="a sequence has 16 tokens, and the model 8 learned positions"):
        model.apply({"params": params}, padded)


def inverse_frequencies(fields):
    """transformers' own, of the fields of a config.json."""
    fields = copy.deepcopy(fields)
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    return rotary.inv_freq.numpy(), rotary.attention_scaling


@pytest.mark.parametrize(
    "rope",
    [
        {},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "rope_theta": 10000.0},
        {"rope_scaling": reference.LLAMA3_ROPE, "rope_theta": 1000.0},
        {"rope_scaling": YARN | {"factor": 4.0, "original_max_position_embeddings": 64}},
        {"rope_scaling": YARN | {"factor": 4.0}},  # of max_position_embeddings
        {"rope_parameters": YARN | {"factor": 2.0}},
    ],
)
@pytest.mark.parametrize("count", [1000, 100])
def test_another_limit_keeps_every_frequency(rope, count):
    """Here, and for transformers reading the config.json that says it."""
    fields = families.hf_config("llama") | rope
    decoder = get_family(fields).decoder_config(fields)
    assert decoder.max_positions == 256
    lifted, changed = with_positions(decoder, fields, count)
    assert lifted == dataclasses.replace(decoder, max_positions=count)
    assert get_family(changed).decoder_config(changed) == lifted
    assert changed["max_position_embeddings"] == count
    for before, after in zip(inverse_frequencies(fields), inverse_frequencies(changed), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-6)
    assert "--max_positions" in advice(decoder)


def test_another_limit_keeps_the_frequencies_of_longrope():
    """Whose attention factor is made of the limit."""
    fields = families.hf_config("phi3 long texts")
    decoder = get_family(fields).decoder_config(fields)
    lifted, changed = with_positions(decoder, fields, 1000)
    assert lifted == dataclasses.replace(decoder, max_positions=1000)
    assert get_family(changed).decoder_config(changed) == lifted
    before, after = (rotary_of_phi(given) for given in (fields, changed))
    np.testing.assert_allclose(after.inv_freq, before.inv_freq)
    np.testing.assert_allclose(after.attention_scaling, before.attention_scaling)
    assert rotary_of_phi(fields | {"max_position_embeddings": 1000}).attention_scaling > before.attention_scaling + 0.1


def rotary_of_phi(fields):
    fields = copy.deepcopy(fields)
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    return transformers.models.phi3.modeling_phi3.Phi3RotaryEmbedding(config)


def test_nothing_asked_for_changes_nothing():
    fields = families.hf_config("llama")
    decoder = get_family(fields).decoder_config(fields)
    assert with_positions(decoder, fields, 0) == (decoder, fields)
    assert with_positions(decoder, fields, 256) == (decoder, fields)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("gpt2", "knows 256 positions, not 300: it has a learned vector for each of its 256 positions"),
        ("llama dynamic rope", "its rotary frequencies change with the length beyond them (rope_type=dynamic)"),
    ],
)
def test_limits_that_are_none(case, message):
    fields = families.hf_config(case)
    decoder = get_family(fields).decoder_config(fields)
    with pytest.raises(ValueError, match=re.escape(message)):
        with_positions(decoder, fields, 300)
    assert not advice(decoder)


def test_a_config_may_leave_yarn_to_its_positions():
    """The case in which a new limit alone would rotate otherwise."""
    fields = families.hf_config("llama") | {"rope_scaling": YARN | {"factor": 4.0}}
    decoder, naive = get_family(fields).decoder_config(fields), fields | {"max_position_embeddings": 1000}
    assert get_family(naive).decoder_config(naive) != dataclasses.replace(decoder, max_positions=1000)
