"""Loading: every tensor is used or listed with its reason, every parameter is filled, and all errors come at once."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from sft_jax.models import Execution, load_pretrained
from sft_jax.models.config import DynamicScaling, LinearScaling, Llama3Scaling, YarnScaling
from sft_jax.models.families import llama
from sft_jax.models.layouts import to_layout
from sft_jax.models.loading import load_params, on_one
from sft_jax.sources import SourceError, open_checkpoint
from tests import tiny
from tests.models import reference

LLAMA3 = reference.LLAMA3_ROPE
SCALING = Llama3Scaling(8.0, 1.0, 4.0, 16)


def rewrite(directory, edit):
    """Changes the tensors of a checkpoint in place."""
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors")
    return directory


@pytest.fixture
def checkpoint(tmp_path):
    return tiny.write_checkpoint(tmp_path / "model")


def test_parameters_are_the_stored_numbers(checkpoint):
    stored = load_file(checkpoint / "model.safetensors")
    model, params = load_pretrained(str(checkpoint))
    assert model.execution == Execution()
    assert params.keys() == {"embedding", "layers", "final_norm"}
    np.testing.assert_array_equal(params["embedding"], stored["model.embed_tokens.weight"])
    for layer in range(3):
        np.testing.assert_array_equal(
            params["layers"]["attention"]["key"]["kernel"][layer],
            stored[f"model.layers.{layer}.self_attn.k_proj.weight"].T,
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_of_all_parameters(checkpoint, dtype):
    _, params = load_pretrained(checkpoint, dtype=dtype)
    assert {leaf.dtype for leaf in reference.flat(params).values()} == {jnp.dtype(dtype)}


def test_layouts_hold_the_same_numbers(checkpoint):
    scan, unrolled = (load_pretrained(checkpoint, execution=Execution(layer_layout=n))[1] for n in ("scan", "unrolled"))
    ours, theirs = reference.flat(to_layout(unrolled, "scan")), reference.flat(scan)
    assert ours.keys() == theirs.keys()
    for path in ours:
        np.testing.assert_array_equal(ours[path], theirs[path])


@pytest.mark.parametrize("layout", ["scan", "unrolled"])
def test_every_array_lies_where_it_is_asked_for(checkpoint, layout):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    opened = open_checkpoint(checkpoint)
    config = llama.decoder_config(opened.config)
    plain = reference.flat(load_params(opened, config, layout, "float32", on_one(jax.devices()[0])))

    def over_all(path, shape):
        return NamedSharding(mesh, P(*(None,) * (len(shape) - 1), "x"))

    placed = reference.flat(load_params(opened, config, layout, "float32", over_all))
    assert placed.keys() == plain.keys()
    for path, array in placed.items():
        assert len(array.addressable_shards) == 8
        assert array.addressable_shards[0].data.shape[-1] * 8 == array.shape[-1]
        np.testing.assert_array_equal(array, plain[path])


def test_all_that_is_wrong_comes_in_one_message(checkpoint):
    def damage(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"]
        del tensors["model.norm.weight"]
        tensors["model.layers.0.self_attn.q_proj.weight"] = np.zeros((32, 16), np.float32)
        tensors["model.layers.0.self_attn.q_norm.weight"] = np.ones(8, np.float32)

    with pytest.raises(ValueError, match=r"does not match its config\.json") as error:
        load_pretrained(rewrite(checkpoint, damage))
    for line in (
        str(checkpoint),
        "model.layers.1.mlp.up_proj.weight is missing (expected shape (48, 32))",
        "model.norm.weight is missing (expected shape (32,))",
        "model.layers.0.self_attn.q_proj.weight has shape (32, 16), expected (32, 32)",
        "model.layers.0.self_attn.q_norm.weight is not used by this model family",
    ):
        assert line in str(error.value)


def test_names_shapes_and_dtypes_are_checked_before_any_tensor_is_read(checkpoint):
    def read(start, stop):
        raise AssertionError(f"the rows {start} to {stop} of a tensor were read")

    opened = open_checkpoint(checkpoint)
    config, on_first = llama.decoder_config(opened.config), on_one(jax.devices()[0])
    entries = {name: dataclasses.replace(entry, read=read) for name, entry in opened.tensors.items()}
    last = "model.layers.2.mlp.down_proj.weight"
    wrong = dataclasses.replace(entries[last], shape=(1, 1))
    integers = dataclasses.replace(entries[last], dtype=np.dtype(np.int32))
    for changed, message in (
        ({last: wrong}, rf"{last} has shape \(1, 1\), expected \(32, 48\)"),
        ({last: integers}, f"{last} holds int32, expected floating-point numbers"),
        ({"model.layers.3.mlp.down_proj.weight": entries[last]}, "layers.3.mlp.down_proj.weight is not used"),
    ):
        with pytest.raises(ValueError, match=message):
            load_params(dataclasses.replace(opened, tensors=entries | changed), config, "scan", "float32", on_first)


def test_a_file_that_is_cut_off_while_it_is_read_gives_no_model(checkpoint):
    opened = open_checkpoint(checkpoint)
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(SourceError, match=r"model.safetensors: the file ends early"):
        load_params(opened, llama.decoder_config(opened.config), "scan", "float32", on_one(jax.devices()[0]))


def test_a_long_list_of_errors_is_cut_with_its_length(checkpoint):
    with pytest.raises(ValueError, match="… and 8 more"):  # 28 tensors left without layers 0 to 2 but the embedding's
        load_pretrained(rewrite(checkpoint, lambda t: [t.pop(n) for n in list(t) if n != "model.embed_tokens.weight"]))


def test_a_bias_that_the_config_does_not_know_is_an_error(checkpoint):
    bias = "model.layers.0.self_attn.q_proj.bias"
    with pytest.raises(ValueError, match=f"{bias} is not used"):
        load_pretrained(rewrite(checkpoint, lambda t: t.update({bias: np.zeros(32, np.float32)})))


def test_a_stored_duplicate_of_the_tied_embedding_is_compared(checkpoint):
    def duplicate(change):
        return lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + np.float32(change)})

    _, params = load_pretrained(rewrite(checkpoint, duplicate(0.0)))
    assert "head" not in params
    with pytest.raises(ValueError, match=r"lm_head.weight differs from .*tie_word_embeddings to false"):
        load_pretrained(rewrite(checkpoint, duplicate(0.5)))


def test_stored_rotary_frequencies_are_ignored(checkpoint):
    name = "model.layers.2.self_attn.rotary_emb.inv_freq"
    load_pretrained(rewrite(checkpoint, lambda t: t.update({name: np.ones(4, np.float32)})))


@pytest.mark.parametrize(
    ("rope", "theta", "scaling"),
    [
        ({"rope_theta": 5e5}, 5e5, None),
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, None),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3}, 5e5, SCALING),
        ({"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "type": "llama3"}}, 5e5, SCALING),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5, None),
        ({"rope_parameters": {**LLAMA3, "rope_theta": 5e5}}, 5e5, SCALING),
        ({}, 10000.0, None),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 10000.0, LinearScaling(2.0)),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 10000.0, DynamicScaling(2.0)),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
            10000.0,
            YarnScaling(4.0, 128, attention_factor=0.1 * np.log(4.0) + 1.0),
        ),
    ],
)
def test_both_spellings_of_rope(rope, theta, scaling):
    hf_config = {name: value for name, value in tiny.HF_CONFIG.items() if name != "rope_theta"} | rope
    config = llama.decoder_config(hf_config)
    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "model_type='mamba'; implemented families: deepseek_v3, gemma2, "),
        ({"model_type": None}, "has no .model_type"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'; implemented for model_type='llama': 'silu'"),
        ({"pretraining_tp": 2}, "pretraining_tp=2; implemented for"),
        ({"rope_scaling": {"type": "axial"}}, "rope_type='axial'; implemented: 'default', 'dynamic', 'linear'"),
        ({"rope_scaling": {"type": "longrope"}}, "config.json has no 'short_factor'"),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [2]}},
            "has 1 numbers in short_factor; expected one for each of 4 pairs",
        ),
        ({"rope_scaling": {"type": "linear"}}, "config.json has no 'factor'"),
        ({"attention_chunk_size": 8}, "not implemented for model_type='llama': attention_chunk_size=8"),
        ({"layer_types": ["chunked_attention"] * 3}, "layer_types=.*chunked_attention"),
        ({"rope_scaling": {**LLAMA3, "factor": None}}, "config.json has no 'factor'"),
        ({"hidden_size": None}, "config.json has no 'hidden_size', which model_type='llama' needs"),
        ({"num_attention_heads": None}, "no 'num_attention_heads'"),
    ],
)
def test_configs_that_are_not_implemented_are_refused(checkpoint, changes, message):
    (checkpoint / "config.json").write_text(json.dumps(tiny.HF_CONFIG | changes))
    with pytest.raises(ValueError, match=message):
        load_pretrained(checkpoint)


def test_sizes_that_a_config_may_leave_out():
    hf_config = {k: v for k, v in tiny.HF_CONFIG.items() if k not in ("head_dim", "num_key_value_heads")}
    config = llama.decoder_config(hf_config)
    assert (config.head_dim, config.num_kv_heads) == (8, 4)
