"""Lists of tensors as published files have them (`model.safetensors.index.json`): nothing unread, nothing unfilled."""

import copy
import itertools
import math
import re

import ml_dtypes
import numpy as np
import pytest

from sft_jax.models.families import decoder_of, tensors_of
from sft_jax.sources import TensorEntry
from sft_jax.sources.mxfp4 import decoded
from sft_jax.sources.wrappers import unwrapped
from tests.models.test_published_families import GPT_OSS, QWEN35_MOE, QWEN35_SMALL, SERVED

# Names with what differs in braces: `{q,k}`, and numbers from the first to the last, `{0-3}`.
_ENDS = ("model.embed_tokens.weight", "model.norm.weight")
_HEAD = "lm_head.weight"


def _dense(layers: str, *more: str) -> tuple[str, ...]:
    """Llama's names in these layers, and more of each."""
    names = (
        *("self_attn.{q,k,v,o}_proj.weight", "mlp.{gate,up,down}_proj.weight"),
        *("{input,post_attention}_layernorm.weight", *more),
    )
    return tuple(f"model.layers.{{{layers}}}.{name}" for name in names)


MISTRAL = SERVED | {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "head_dim": 128,
    "hidden_size": 5120,
    "intermediate_size": 32768,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e9,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "vocab_size": 131072,
}
MIXTRAL = SERVED | {
    "model_type": "mixtral",
    "hidden_size": 6144,
    "intermediate_size": 16384,
    "max_position_embeddings": 65536,
    "num_attention_heads": 48,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 56,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
QWEN3 = SERVED | {
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN2 = SERVED | {
    "model_type": "qwen2",
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "max_position_embeddings": 131072,
    "max_window_layers": 48,
    "num_attention_heads": 40,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 151665,
}
PHI3 = SERVED | {
    "model_type": "phi3",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": 2047,
    "tie_word_embeddings": False,
    "vocab_size": 32064,
}
LLAMA = SERVED | {
    "model_type": "llama",
    "attention_bias": False,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 32008,
}
_OF_EXPERTS = "model.layers.{0-55}.block_sparse_moe"
# name -> (config.json, names, bytes of all: `total_size` of the index, two a number)
LISTED = {
    # mistralai/Devstral-Small-2507, as in fetchwiki/mistralai-Devstral-Small-2507
    "Devstral-Small-2507": (MISTRAL, (*_ENDS, _HEAD, *_dense("0-39")), 47_144_806_400),
    # WizardLM-2 8x22B, of Mixtral 8x22B, as in tbressers/WizardLM-2-8x22B
    "Mixtral-8x22B": (
        MIXTRAL,
        (
            *(*_ENDS, _HEAD, "model.layers.{0-55}.self_attn.{q,k,v,o}_proj.weight"),
            "model.layers.{0-55}.{input,post_attention}_layernorm.weight",
            *(f"{_OF_EXPERTS}.gate.weight", f"{_OF_EXPERTS}.experts.{{0-7}}.{{w1,w2,w3}}.weight"),
        ),
        281_241_268_224,
    ),
    # Qwen/Qwen3-1.7B, as in root-hypercube/qwen3-mlx
    "Qwen3-1.7B": (QWEN3, (*_ENDS, *_dense("0-27", "self_attn.{q,k}_norm.weight")), 3_441_149_952),
    # Qwen3 4B, as in mnkhmtv/koyash-prompt-vs-lora
    "Qwen3-4B": (
        QWEN3
        | {"hidden_size": 2560, "intermediate_size": 9728, "max_window_layers": 36, "vocab_size": 151669}
        | {"num_attention_heads": 32, "num_hidden_layers": 36},
        (*_ENDS, *_dense("0-35", "self_attn.{q,k}_norm.weight")),
        8_043_569_152,
    ),
    # cogito v1 preview, of Qwen 2.5 14B, as in fetchwiki/deepcogito-cogito-v1-preview-qwen-14B
    "Qwen2.5-14B": (QWEN2, (*_ENDS, _HEAD, *_dense("0-47", "self_attn.{q,k,v}_proj.bias")), 29_531_895_808),
    # of microsoft/Phi-3-mini-4k-instruct, as in YouriLalain/3PRYMMAL-PHI3-3B-SLERP
    "Phi-3-mini-4k": (
        PHI3,
        (
            *(*_ENDS, _HEAD, "model.layers.{0-31}.self_attn.{qkv,o}_proj.weight"),
            "model.layers.{0-31}.mlp.{gate_up,down}_proj.weight",
            "model.layers.{0-31}.{input,post_attention}_layernorm.weight",
        ),
        7_642_159_104,
    ),
    # a Llama 2 7B with eight more tokens, as in VineethGithubIBM/graniteModelWithoutGGUF
    "Llama-2-7B": (LLAMA, (*_ENDS, _HEAD, *_dense("0-31")), 13_476_962_304),
}
# openai/gpt-oss-20b: its index says 13,761,264,768 bytes.
GPT_OSS_20B = (
    *(*_ENDS, _HEAD, "model.layers.{0-23}.self_attn.{q,k,v,o}_proj.{bias,weight}"),
    *("model.layers.{0-23}.self_attn.sinks", "model.layers.{0-23}.mlp.router.{bias,weight}"),
    "model.layers.{0-23}.mlp.experts.{gate_up,down}_proj_{bias,blocks,scales}",
    "model.layers.{0-23}.{input,post_attention}_layernorm.weight",
)
# google/medgemma-27b-it, as in Ibtasam-98/medgemma-27b-it
MEDGEMMA = {
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255_999,
    "eoi_token_index": 256_000,
    "eos_token_id": [1, 106],
    "image_token_index": 262_144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "text_config": {
        "model_type": "gemma3_text",
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "head_dim": 128,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "layer_types": ([*["sliding_attention"] * 5, "full_attention"] * 11)[:62],
        "max_position_embeddings": 131_072,
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "query_pre_attn_scalar": 168,
        "rms_norm_eps": 1e-6,
        "rope_local_base_freq": 10000,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "rope_theta": 1_000_000,
        "sliding_window": 1024,
        "vocab_size": 262_208,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 1152, "num_hidden_layers": 27},
}


def _delta(last: int, *more: str) -> tuple[str, ...]:
    """The names of Qwen 3.5, of whose layers every fourth one has attention, and more of each layer."""
    whole = ",".join(str(layer) for layer in range(3, last + 1, 4))
    rest = ",".join(str(layer) for layer in range(last + 1) if layer % 4 != 3)
    own = ("{A_log,dt_bias}", "{conv1d,norm,out_proj,in_proj_qkv,in_proj_z,in_proj_a,in_proj_b}.weight")
    names = (
        *(f"{{{rest}}}.linear_attn.{name}" for name in own),
        *(f"{{{whole}}}.self_attn.{name}.weight" for name in ("{q,k,v,o}_proj", "{q,k}_norm")),
        *(f"{{0-{last}}}.{name}.weight" for name in ("{input,post_attention}_layernorm", *more)),
    )
    ends = tuple(f"model.language_model.{name}.weight" for name in ("embed_tokens", "norm"))
    return (*ends, *(f"model.language_model.layers.{name}" for name in names))


_SHARED = ("mlp.shared_expert.{gate,up,down}_proj", "mlp.shared_expert_gate")
# name -> (model_type of the wrapper, its text_config, names, bytes of all)
DELTA_NETS = {
    # a Qwen3.5 2B, as in lawrence3699/Jev-Style-2B-Decision-v3
    "Qwen3.5-2B": (
        "qwen3_5",
        QWEN35_SMALL | {"hidden_size": 2048, "intermediate_size": 6144},
        _delta(23, "mlp.{gate,up,down}_proj"),
        3_763_650_176,
    ),
    # a Qwen3.5 35B-A3B without 76 of its experts, as in bryce-hoehn/Qwen3.5-25B-REAP-A3B-Coding
    "Qwen3.5-25B-A3B": (
        "qwen3_5_moe",
        QWEN35_MOE | {"num_experts": 180, "tie_word_embeddings": False},
        (_HEAD, *_delta(39, "mlp.gate", "mlp.experts.{0-179}.{gate,up,down}_proj", *_SHARED)),
        50_182_743_296,
    ),
}
_OF_VISION = "vision_tower.vision_model"
MEDGEMMA_TENSORS = (
    *("language_model.model.embed_tokens.weight", "language_model.model.norm.weight"),
    "language_model.model.layers.{0-61}.self_attn.{q,k,v,o}_proj.weight",
    "language_model.model.layers.{0-61}.self_attn.{q,k}_norm.weight",
    "language_model.model.layers.{0-61}.mlp.{gate,up,down}_proj.weight",
    "language_model.model.layers.{0-61}.{input,post_attention,pre_feedforward,post_feedforward}_layernorm.weight",
    *("multi_modal_projector.mm_input_projection_weight", "multi_modal_projector.mm_soft_emb_norm.weight"),
    *(f"{_OF_VISION}.embeddings.{name}" for name in ("patch_embedding.{weight,bias}", "position_embedding.weight")),
    f"{_OF_VISION}.encoder.layers.{{0-26}}.{{layer_norm1,layer_norm2,mlp.fc1,mlp.fc2}}.{{weight,bias}}",
    f"{_OF_VISION}.encoder.layers.{{0-26}}.self_attn.{{q_proj,k_proj,v_proj,out_proj}}.{{weight,bias}}",
    f"{_OF_VISION}.post_layernorm.{{weight,bias}}",
)
_COUNTS = {  # entries of the index
    "Devstral-Small-2507": 363,
    "Mixtral-8x22B": 1739,
    "Qwen3-1.7B": 310,
    "Qwen3-4B": 398,
    "Qwen2.5-14B": 579,
    "Phi-3-mini-4k": 195,
    "Llama-2-7B": 291,
}


def names(patterns: tuple[str, ...]) -> list[str]:
    """The names that patterns stand for."""
    found = []
    for pattern in patterns:
        apart = re.split(r"\{(.*?)\}", pattern)
        choices = [_numbers(part) or part.split(",") for part in apart[1::2]]
        for chosen in itertools.product(*choices):
            found.append("".join(itertools.chain(*zip(apart[::2], (*chosen, ""), strict=True))))
    return found


def _numbers(part: str) -> list[str]:
    found = re.fullmatch(r"(\d+)-(\d+)", part)
    return [str(number) for number in range(int(found[1]), int(found[2]) + 1)] if found else []


def test_patterns_by_hand():
    assert names(("a.{8-10}.{x,y}", "b")) == ["a.8.x", "a.8.y", "a.9.x", "a.9.y", "a.10.x", "a.10.y", "b"]


@pytest.mark.parametrize("name", LISTED)
def test_every_tensor_is_read_and_every_parameter_filled(name):
    fields, patterns, size = LISTED[name]
    listed = names(patterns)
    assert len(listed) == len(set(listed)) == _COUNTS[name]
    rules = tensors_of(fields, decoder_of(copy.deepcopy(fields)))
    shapes = {rule.source: rule.shape for rule in rules}
    assert set(listed) == {rule.source for rule in rules if rule.path is not None}
    assert 2 * sum(math.prod(shapes[tensor]) for tensor in listed) == size


def test_the_tensors_of_gpt_oss_20b():
    """In MXFP4: those that are listed, with the bytes that they have together, become those that the family reads."""
    rules = {rule.source: rule for rule in tensors_of(GPT_OSS, decoder_of(copy.deepcopy(GPT_OSS))) if rule.path}
    not_read = lambda start, stop: np.zeros(0)
    entries = {}
    for name in names(GPT_OSS_20B):
        stem, _, end = name.rpartition("_")
        if end not in ("blocks", "scales"):
            entries[name] = TensorEntry(rules[name].shape, np.dtype(ml_dtypes.bfloat16), not_read)
            continue
        experts, inputs, outputs = rules[stem].shape
        shape = (experts, outputs, inputs // 32, *((16,) if end == "blocks" else ()))
        entries[name] = TensorEntry(shape, np.dtype(np.uint8), not_read)
    assert sum(math.prod(entry.shape) * entry.dtype.itemsize for entry in entries.values()) == 13_761_264_768
    assert decoded(entries, "made").keys() == rules.keys()


def test_the_tensors_of_a_wrapper_with_a_tower():
    entry = TensorEntry((1,), np.dtype(ml_dtypes.bfloat16), lambda start, stop: np.zeros(0))
    listed = dict.fromkeys(names(MEDGEMMA_TENSORS), entry)
    assert len(listed) == 1247
    text, tensors, _ = unwrapped(copy.deepcopy(MEDGEMMA), listed, "made")
    assert tensors.keys() == {rule.source for rule in tensors_of(text, decoder_of(text)) if rule.path is not None}
    assert len(tensors) == 2 + 62 * 13


@pytest.mark.parametrize("name", DELTA_NETS)
def test_the_tensors_of_delta_nets(name):
    """By the names that they have in wrappers; what is left out is of the layer behind the last one."""
    kind, text, patterns, size = DELTA_NETS[name]
    entry = TensorEntry((1,), np.dtype(ml_dtypes.bfloat16), lambda start, stop: np.zeros(0))
    listed = dict.fromkeys(names(patterns), entry)
    text, tensors, _ = unwrapped({"model_type": kind, "text_config": copy.deepcopy(text)}, listed, "made")
    rules = tensors_of(text, decoder_of(text))
    assert tensors.keys() == {rule.source for rule in rules if rule.path is not None}
    shapes = {rule.source: rule.shape for rule in rules}  # several are of one tensor
    assert 2 * sum(math.prod(shapes[tensor]) for tensor in tensors) == size
