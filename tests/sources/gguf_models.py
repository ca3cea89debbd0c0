"""Tiny torch models of each architecture, and GGUF files of them as llama.cpp's conversion writes them.

Names of tensors and spellings of keys are those of the `gguf` library, which llama.cpp converts with; what is written
for which architecture, and how tensors are changed, follows conversion/ of llama.cpp.
"""

import copy
import json
import math
from pathlib import Path

import gguf
import numpy as np
import transformers

from sft_jax.models import load_pretrained
from sft_jax.sources import open_checkpoint
from tests.models import families, reference

GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": families.WINDOW, "tie_word_embeddings": True}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 20000.0}

# name -> fields of config.json
CASES = {
    "llama": {"model_type": "llama", "rope_theta": 20000.0, "attention_bias": True, "mlp_bias": True},
    "llama linear": {
        "model_type": "llama",
        "head_dim": 16,
        "tie_word_embeddings": True,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
    "qwen2": {"model_type": "qwen2", "rope_theta": 20000.0},
    "qwen3": {"model_type": "qwen3", "head_dim": 128, "rope_theta": 20000.0, "tie_word_embeddings": True},
    "qwen3 yarn": {"model_type": "qwen3", "head_dim": 16, "rope_scaling": YARN},
    "gemma2": GEMMA
    | {
        "model_type": "gemma2",
        "num_hidden_layers": 26,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3": GEMMA
    | {
        "model_type": "gemma3_text",
        "num_hidden_layers": 18,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    },
}

# Those that transformers reads no GGUF files of, or (Phi-3) loses what is new in them of.
CASES_OF_TORCH = {
    "granite": families.GRANITE | {"model_type": "granite", "rope_theta": 20000.0, "attention_bias": True},
    "ministral3": {
        "model_type": "ministral3",
        "head_dim": 16,
        "rope_parameters": YARN
        | {
            "original_max_position_embeddings": 16,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.5,
        },
    },
    "olmo2": {"model_type": "olmo2", "rope_theta": 20000.0},
    "olmo3": {
        "model_type": "olmo3",
        "sliding_window": families.WINDOW,
        "layer_types": ["full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": YARN | {"attention_factor": 1.2},
            "sliding_attention": {"rope_theta": YARN["rope_theta"]},
        },
    },
    "gpt_oss": {
        "model_type": "gpt_oss",
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": families.WINDOW,
        "rope_parameters": YARN | {"truncate": False},
    },
    "phi3": {"model_type": "phi3", "sliding_window": families.WINDOW, "original_max_position_embeddings": 256},
    "phi3 longrope": families.LONGROPE | {"original_max_position_embeddings": 10, "tie_word_embeddings": True},
}
_WRITTEN_AS = {"ministral3": "mistral3", "olmo3": "olmo2", "gpt_oss": "gpt-oss"}
TOLERANCE = 1e-4
_SUFFIXES = (".weight", ".bias")
_INTERLEAVED = ("granite", "llama", "ministral3")


def torch_model(case: str) -> transformers.PreTrainedModel:
    fields = copy.deepcopy(families.SIZES | (CASES | CASES_OF_TORCH)[case])
    return families.random_model(transformers.AutoConfig.for_model(fields.pop("model_type"), **fields))


def check_read(torch_model: transformers.PreTrainedModel, path: Path, rounded: float = 0.0) -> None:
    """A file of the model gives its logits, its tensors (within `rounded`), and a config that transformers reads."""
    ids = reference.tokens(2, 24)
    expected = families.torch_logits(torch_model, ids)
    assert expected.std() >= 1
    model, params = load_pretrained(path)
    np.testing.assert_allclose(reference.logits_of(model, params, ids), expected, atol=TOLERANCE, rtol=0)
    stored = torch_model.state_dict()
    true = _as_published(torch_model.config, stored)
    ours = open_checkpoint(path)
    assert ours.tensors.keys() == true.keys()
    for label, entry in ours.tensors.items():
        np.testing.assert_allclose(entry.load(), true[label], atol=rounded, rtol=0, err_msg=label)
    # An exported config.json is one that transformers reads.
    (path.parent / "config.json").write_text(json.dumps(ours.config))
    again = transformers.AutoConfig.from_pretrained(path.parent)
    assert type(again) is type(torch_model.config)
    whole = families.random_model(again)
    whole.load_state_dict(stored)
    np.testing.assert_allclose(families.torch_logits(whole, ids), expected, atol=TOLERANCE)


def _as_published(config: transformers.PreTrainedConfig, stored: dict) -> dict[str, np.ndarray]:
    """The tensors of a model's published files: no head that is the embedding, and most experts one by one."""
    made = {}
    for name, tensor in stored.items():
        stem, _, part = name.rpartition(".mlp.experts.")
        array = tensor.numpy()
        if not stem or config.model_type == "gpt_oss":
            made[name] = array
            continue
        names = ("gate_proj", "up_proj") if part == "gate_up_proj" else (part,)
        for number, expert in enumerate(array):
            for own, rows in zip(names, np.split(expert, len(names)), strict=True):
                made[f"{stem}.mlp.experts.{number}.{own}.weight"] = rows
    if config.tie_word_embeddings:
        del made["lm_head.weight"]
    return made


def permuted(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """What llama.cpp does to query and key projections of a Llama, and to their biases."""
    half = weight.shape[0] // num_heads // 2
    return weight.reshape(num_heads, 2, half, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write(path: Path, model: transformers.PreTrainedModel) -> Path:
    """A GGUF file of float32 tensors."""
    config = model.config
    architecture = _WRITTEN_AS.get(config.model_type, config.model_type.removesuffix("_text"))
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    _write_parameters(writer, config)
    _write_tokenizer(writer, config)
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if ".mlp.experts." in name:
            _write_experts(writer, name, parameter.numpy())
            continue
        written = names.get_name(name.removesuffix(".sinks") + ".sinks.weight" * name.endswith(".sinks"), _SUFFIXES)
        writer.add_tensor(written, _stored(config, name, parameter.numpy()))
    if config.model_type == "phi3" and "long_factor" in config.rope_parameters:
        for kind in ("long", "short"):
            writer.add_tensor(f"rope_factors_{kind}.weight", np.float32(config.rope_parameters[f"{kind}_factor"]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_experts(writer: gguf.GGUFWriter, name: str, array: np.ndarray) -> None:
    """Those of gpt-oss: outputs before inputs, gate and up apart."""
    prefix, kind = f"blk.{name.split('.')[2]}", "bias" if name.endswith("_bias") else "weight"
    array = array if kind == "bias" else array.swapaxes(1, 2)
    parts = {"down": array} if "down_proj" in name else {"gate": array[:, 0::2], "up": array[:, 1::2]}
    for part, own in parts.items():
        writer.add_tensor(f"{prefix}.ffn_{part}_exps.{kind}", np.ascontiguousarray(own))


def _stored(config: transformers.PreTrainedConfig, name: str, array: np.ndarray) -> np.ndarray:
    if config.model_type in _INTERLEAVED and "q_proj" in name:
        return permuted(array, config.num_attention_heads)
    if config.model_type in _INTERLEAVED and "k_proj" in name:
        return permuted(array, config.num_key_value_heads)
    if config.model_type.startswith("gemma") and name.endswith("norm.weight"):
        return array + 1
    return array


def _write_parameters(writer: gguf.GGUFWriter, config: transformers.PreTrainedConfig) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None)
    if head_dim is not None:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if config.model_type in _INTERLEAVED:
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(head_dim or config.hidden_size // config.num_attention_heads)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
        writer.add_sliding_window(config.sliding_window)
        return  # and nothing of rope
    if config.model_type == "gemma3_text":
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    if config.model_type == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if config.model_type == "ministral3":
        writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
        writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])
    if config.model_type == "olmo3":
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    if config.model_type == "gpt_oss":
        writer.add_sliding_window(config.sliding_window)
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.intermediate_size)
    if config.model_type == "phi3":
        _write_phi3(writer, config)
        return
    _write_rope(writer, rope)


def _write_phi3(writer: gguf.GGUFWriter, config: transformers.PreTrainedConfig) -> None:
    rope, head_dim = config.rope_parameters, config.hidden_size // config.num_attention_heads
    writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    writer.add_rope_dimension_count(int(rope["partial_rotary_factor"] * head_dim))
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_sliding_window(config.sliding_window or 0)
    if "long_factor" in rope:
        original = config.original_max_position_embeddings
        stretched = math.log(config.max_position_embeddings / original) / math.log(original)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + stretched))


def _write_rope(writer: gguf.GGUFWriter, rope: dict) -> None:
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if "attention_factor" in rope:
            writer.add_rope_scaling_yarn_attn_factor(rope["attention_factor"])
        if "beta_fast" in rope:
            writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
            writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])


def _write_tokenizer(writer: gguf.GGUFWriter, config: transformers.PreTrainedConfig) -> None:
    """Without merges and pre-tokenizer: only the numbers that go into the config."""
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"token{id_}" for id_ in range(config.vocab_size)])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)
