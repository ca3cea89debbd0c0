"""What a config.json may hold: in every family a field of another kind is refused, by name, before anything is made."""

import copy
import json
import math

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_jax.models import load_pretrained
from sft_jax.models.families import get_family
from sft_jax.models.families.tables import KINDS
from sft_jax.models.rope import frequencies, magnitude, of_length, rotaries
from tests import tiny, work
from tests.models import families, reference

LLAMA3 = reference.LLAMA3_ROPE
SIZES = ("vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads", "head_dim", "ffn_dim", "max_positions")
STEPS = 1_000_000  # some 170,000 were taken


@pytest.mark.parametrize("case", families.CASES)
def test_what_a_config_leaves_out_is_what_transformers_takes_for_it(case):
    fields = families.text_config(case)
    family = get_family(fields)
    whole = transformers.AutoConfig.for_model(**copy.deepcopy(fields)).to_dict()
    assert family.decoder_config(fields) == family.decoder_config(whole)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("fields") / "model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": "320"}, "vocab_size='320'; expected a whole number from 1 to 16777216"),
        ({"vocab_size": 320.0}, "vocab_size=320.0; expected a whole number"),
        ({"vocab_size": True}, "vocab_size=True; expected a whole number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000; expected a whole number from 1 to 4096"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0; expected"),
        ({"hidden_size": -32}, "hidden_size=-32; expected a whole number from 1 to 4194304"),
        ({"hidden_size": 2**62}, "hidden_size=4611686018427387904; expected"),
        ({"intermediate_size": [48]}, r"intermediate_size=\[48\]; expected"),
        ({"num_attention_heads": 0}, "num_attention_heads=0; expected a whole number from 1 to 65536"),
        ({"num_attention_heads": 5, "head_dim": None}, "has a width of 32 for 5 heads; expected a multiple"),
        ({"num_attention_heads": 64, "head_dim": None}, "has a width of 32 for 64 heads; expected a multiple"),
        ({"num_key_value_heads": 3}, "num_heads=4 must be a multiple of num_kv_heads=3"),
        ({"head_dim": 7}, "head_dim=7 must be even"),
        ({"max_position_embeddings": 2**40}, "max_position_embeddings=1099511627776; expected"),
        ({"rms_norm_eps": math.nan}, "NaN is no JSON number"),
        ({"rms_norm_eps": 0}, "rms_norm_eps=0; expected a number from 1e-20 to 1"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps=-1e-05; expected"),
        ({"rms_norm_eps": 1e-50}, "rms_norm_eps=1e-50; expected"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps='1e-5'; expected a number"),
        ({"rope_theta": 0}, "rope_theta=0; expected a number from 1.001 to 1e"),
        ({"rope_theta": -1e4}, "rope_theta=-10000.0; expected a number"),
        ({"rope_theta": False}, "rope_theta=False; expected a number"),
        ({"rope_scaling": ["linear", 2]}, r"rope_scaling=\['linear', 2\]; expected an object"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor='2'; expected a number"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor=0; expected a number"),
        ({"rope_scaling": {"type": ["linear"]}}, r"type=\['linear'\]; expected a name"),
        (
            {"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}},
            "low_freq_factor=4.0 and high_freq_factor=4.0; expected a",
        ),
        ({"rope_parameters": {"rope_theta": {}}}, "rope_theta={}; expected a number"),
        ({"partial_rotary_factor": 0}, "partial_rotary_factor=0; expected a number from 1e-06 to 1"),
        ({"partial_rotary_factor": 0.01}, "rotates 0.01 of heads of 8; expected a pair at least"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor=1.5; expected"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings='false'; expected true or false"),
        ({"attention_bias": 1}, "attention_bias=1; expected true or false"),
        ({"layer_types": "full_attention"}, "layer_types='full_attention'; expected a list of names"),
        ({"layer_types": [["full_attention"]] * 3}, "layer_types=.*; expected a list of names"),
        ({"layer_types": ["full_attention"] * 2}, "layer_types=.*for each of 3 layers"),
        ({"layer_types": ["sliding_attention"] * 3}, "'sliding_attention' in layer_types, but no sliding_window"),
        (
            {"layer_types": ["sliding_attention"] * 3, "sliding_window": -4},
            "sliding_window=-4; expected a whole number",
        ),
        ({"hidden_act": ["silu"]}, r"hidden_act=\['silu'\]; expected a name"),
        ({"model_type": "smollm3", "no_rope_layer_interval": 0}, "no_rope_layer_interval=0; expected"),
        ({"model_type": "smollm3", "no_rope_layers": []}, "has 0 no_rope_layers; expected one for each of 3 layers"),
        (
            {"model_type": "smollm3", "no_rope_layers": [2, 1, 1]},
            r"no_rope_layers=\[2, 1, 1\]; expected a list of 0 and 1",
        ),
        ({"mystery": [[0] * 1000] * 1000}, "fields that are not implemented for model_type='llama': mystery="),
    ],
)
def test_fields_by_hand(checkpoint, changes, message):
    (checkpoint / "config.json").write_text(json.dumps(tiny.HF_CONFIG | changes))
    with pytest.raises(ValueError, match=message) as error, work.at_most(STEPS):
        load_pretrained(checkpoint)
    assert str(checkpoint) in str(error.value)
    assert len(str(error.value)) < 1500


HF_CONFIGS = [families.text_config(name) for name in families.CASES]
NASTY = st.sampled_from(
    [None, True, False, -1, 0, 1, 2, 3, 10**9, 2**62, 0.5, 1e-320, 1e-46, -1.0, 1e308, math.inf, math.nan]
)
OTHER = st.sampled_from(["", "4", "false", "linear", "yarn", [], [1], [[1]], ["full_attention"] * 2, {}, {"a": 1}])
ROPES = st.fixed_dictionaries(
    {"rope_type": st.sampled_from(["linear", "llama3", "yarn", "dynamic", "longrope", "other", 3])},
    optional=dict.fromkeys(
        ("factor", "rope_theta", "low_freq_factor", "mscale", "mscale_all_dim", "beta_fast", "full_attention"),
        NASTY | OTHER,
    ),
)


@settings(max_examples=500, derandomize=True, database=None, deadline=None)
@given(
    hf_config=st.sampled_from(HF_CONFIGS),
    changes=st.dictionaries(st.sampled_from(sorted(KINDS)), NASTY | OTHER | ROPES, min_size=1, max_size=2),
)
def test_a_changed_config_is_a_model_or_an_error_that_names_the_field(hf_config, changes):
    try:
        config = get_family(hf_config).decoder_config(copy.deepcopy(hf_config) | changes)
    except ValueError as error:
        message = str(error)
        assert message.startswith("config.json") or " must be " in message  # the second is DecoderConfig's own
        return
    assert all(type(getattr(config, name)) is int and getattr(config, name) > 0 for name in SIZES)
    assert np.float32(config.norm_eps) > 0
    for length in (1, 2**30):
        for rotary in rotaries(of_length(config, length)):
            found = frequencies(rotary)
            assert np.isfinite(found).all()
            assert (found >= 0).all()
            assert math.isfinite(magnitude(rotary))
    get_family(hf_config).tensor_table(config)
