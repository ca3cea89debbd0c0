"""DeepSeek V3 and GLM 4.5: what their configs may say, and what their files hold beside the model."""

import copy
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sft_jax.models import load_pretrained
from sft_jax.models.families import get_family
from sft_jax.sources import SourceError
from tests.models import families, reference
from tests.models.test_published_families import DEEPSEEK_V3, GLM4_MOE, GLM_FLASH


def decoder_of(fields, **changes):
    return get_family(fields).decoder_config(copy.deepcopy(fields) | changes)


@pytest.mark.parametrize(
    ("fields", "changes", "message"),
    [
        (DEEPSEEK_V3, {"scoring_func": "softmax"}, "scoring_func='softmax'; implemented .*: 'sigmoid'"),
        (DEEPSEEK_V3, {"topk_method": "greedy"}, "topk_method='greedy'; implemented .*: 'noaux_tc'"),
        (DEEPSEEK_V3, {"moe_layer_freq": 2}, "moe_layer_freq=2"),
        (DEEPSEEK_V3, {"num_nextn_predict_layers": 2}, "num_nextn_predict_layers=2; implemented .*: 1, 0"),
        (DEEPSEEK_V3, {"kv_lora_rank": None}, "no 'kv_lora_rank', which model_type='deepseek_v3' needs"),
        (DEEPSEEK_V3, {"n_group": 7}, "num_experts=256 must be a multiple of expert_groups=7"),
        (DEEPSEEK_V3, {"partial_rotary_factor": 0.5}, "rotates 32 of qk_rope_head_dim=64; expected all of them"),
        (DEEPSEEK_V3, {"index_topk": 2048}, "not implemented for model_type='deepseek_v3': index_topk=2048"),
        (GLM4_MOE, {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        (GLM_FLASH, {"mlp_layer_types": ["dense"] * 3}, "expected 'dense' or 'sparse' for each of 47 layers"),
        (GLM_FLASH, {"mlp_layer_types": ["dense"] * 46 + ["moe"]}, "expected 'dense' or 'sparse'"),
        (GLM_FLASH, {"first_k_dense_replace": 3}, "first_k_dense_replace=3; implemented .*: 1"),
        (GLM_FLASH, {"head_dim": 128}, "head_dim=128; implemented .*: 64"),
    ],
)
def test_configs_that_are_refused(fields, changes, message):
    with pytest.raises(ValueError, match=message):
        decoder_of(fields, **changes)


def test_layers_without_experts():
    """Those before `first_k_dense_replace`, and those that `mlp_layer_types` says."""
    some = decoder_of(GLM4_MOE)
    assert [some.of_layer(layer).num_experts for layer in (0, 2, 3, 91)] == [0, 0, 160, 160]
    assert [some.of_layer(layer).ffn_dim for layer in (2, 3)] == [12288, 1536]
    assert [some.of_layer(layer).shared_ffn_dim for layer in (2, 3)] == [0, 1536]
    assert some.layers_with_experts == 89
    kinds = ["sparse", "dense"] * 23 + ["sparse"]
    turns = decoder_of(GLM_FLASH, mlp_layer_types=kinds, first_k_dense_replace=0)
    assert [turns.of_layer(layer).num_experts for layer in range(3)] == [64, 0, 64]
    without = decoder_of(GLM4_MOE, num_hidden_layers=3)
    assert (without.num_experts, without.layer_overrides, without.ffn_dim) == (0, (), 12288)
    everywhere = decoder_of(DEEPSEEK_V3, first_k_dense_replace=0)
    assert (everywhere.num_experts, everywhere.layer_overrides) == (256, ())


def test_scores_are_larger_by_the_square_of_yarns_factor():
    factor = 0.1 * np.log(40) + 1
    assert decoder_of(DEEPSEEK_V3).query_scale == pytest.approx(192**-0.5 * factor**2)
    assert decoder_of(DEEPSEEK_V3).rope_scaling.attention_factor == 1.0
    scaling = DEEPSEEK_V3["rope_scaling"] | {"mscale_all_dim": 0.5}
    half = decoder_of(DEEPSEEK_V3, rope_scaling=scaling)
    assert half.query_scale == pytest.approx(192**-0.5 * (0.05 * np.log(40) + 1) ** 2)
    assert half.rope_scaling.attention_factor == pytest.approx(factor / (0.05 * np.log(40) + 1))
    assert decoder_of(DEEPSEEK_V3, rope_scaling=None).query_scale == 0.0


@pytest.mark.parametrize("case", ["deepseek_v3", "glm4_moe"])
def test_the_layer_of_multi_token_prediction_is_left_aside(case, tmp_path):
    """As it lies in published files: behind the last layer, with a copy of the embedding and of the head."""
    directory = families.save(families.torch_model(case), tmp_path)
    ids = reference.tokens(1, 8)
    expected = reference.logits_of(*load_pretrained(directory), ids)
    path, rng = directory / "model.safetensors", np.random.default_rng(0)
    tensors, width = load_file(path), 32
    last = {name.replace("layers.2.", "layers.3."): x for name, x in tensors.items() if "layers.2." in name}
    shapes = {name: x.shape for name, x in last.items()} | {
        **{f"model.layers.3.{name}.weight": (width,) for name in ("enorm", "hnorm", "shared_head.norm")},
        **{f"model.layers.3.{name}.weight": (320, width) for name in ("embed_tokens", "shared_head.head")},
        "model.layers.3.eh_proj.weight": (width, 2 * width),
    }
    save_file(tensors | {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}, path)
    np.testing.assert_array_equal(reference.logits_of(*load_pretrained(directory), ids), expected)
    save_file(tensors | {"model.layers.4.enorm.weight": np.ones(width, np.float32)}, path)
    with pytest.raises(ValueError, match=r"model.layers.4.enorm.weight is not used by this model family"):
        load_pretrained(directory)


def test_files_in_8_bits_are_refused_with_what_to_do(tmp_path):
    settings = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK_V3 | {"quantization_config": settings}))
    message = r"quantized \(fp8\), which is not read. .*FineGrainedFP8Config\(dequantize=True"
    with pytest.raises(SourceError, match=message):
        load_pretrained(tmp_path)
