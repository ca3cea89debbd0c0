"""Large checkpoints of ones, as published files of a family store them: for what loading takes, not what it gives."""

import itertools
import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np
from etils import epath

from sft_jax.models.families import get_family
from sft_jax.sources import stacked_experts
from sft_jax.sources.safetensors_writer import PendingTensor, write_safetensors

Kind = tuple[tuple[int, ...], np.dtype]  # shape and dtype of a tensor
_BF16, _BYTE = np.dtype(ml_dtypes.bfloat16), np.dtype(np.uint8)
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_LATENT = {
    "kv_lora_rank": 512,
    "q_lora_rank": 768,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "num_key_value_heads": 16,
}

# name -> (layers that are added together, fields of config.json but those that depend on how many layers there are).
# Widths are those of published models, or near them.
FAMILIES: dict[str, tuple[int, dict]] = {
    "llama": (
        1,
        {
            "model_type": "llama",
            "vocab_size": 32768,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "tie_word_embeddings": False,
        },
    ),
    "gemma4_experts": (
        2,
        {
            "model_type": "gemma4_text",
            "vocab_size": 32768,
            "hidden_size": 2816,
            "intermediate_size": 2112,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "num_global_key_value_heads": 2,
            "attention_k_eq_v": True,
            "enable_moe_block": True,
            "num_experts": 32,
            "top_k_experts": 8,
            "moe_intermediate_size": 704,
            "hidden_size_per_layer_input": 0,
            "sliding_window": 1024,
        },
    ),
    "gemma4_e2b": (
        10,
        {
            "model_type": "gemma4_text",
            "vocab_size": 131072,
            "hidden_size": 1536,
            "intermediate_size": 6144,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "hidden_size_per_layer_input": 256,
            "vocab_size_per_layer_input": 131072,
            "sliding_window": 512,
        },
    ),
    "qwen3_5_moe": (
        4,
        {
            "model_type": "qwen3_5_moe_text",
            "vocab_size": 32768,
            "hidden_size": 2048,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "linear_num_value_heads": 32,
            "rope_parameters": _ROPE | {"partial_rotary_factor": 0.25},
            "tie_word_embeddings": False,
        },
    ),
    "deepseek_v3": (
        1,
        _LATENT
        | {
            "model_type": "deepseek_v3",
            "vocab_size": 32768,
            "hidden_size": 2048,
            "intermediate_size": 10944,
            "num_attention_heads": 16,
            "moe_intermediate_size": 1408,
            "n_routed_experts": 64,
            "num_experts_per_tok": 6,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "tie_word_embeddings": False,
        },
    ),
    "glm4_moe": (
        1,
        {
            "model_type": "glm4_moe",
            "vocab_size": 32768,
            "hidden_size": 2048,
            "intermediate_size": 10944,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "moe_intermediate_size": 1408,
            "n_routed_experts": 64,
            "num_experts_per_tok": 8,
            "first_k_dense_replace": 1,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "gpt_oss": (
        2,
        {
            "model_type": "gpt_oss",
            "vocab_size": 32768,
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "num_local_experts": 8,
            "num_experts_per_tok": 4,
            "sliding_window": 128,
        },
    ),
}


def write(name: str, gib: float, directory: Path) -> int:
    """Writes a checkpoint of about so many GiB of parameters in bfloat16; bytes of the largest tensor in its file.

    Args:
        name: of `FAMILIES`.
        gib: its parameters, as they are loaded.
        directory: which is there.
    """
    period, fields = FAMILIES[name]
    candidates = (fields | _of_layers(name, layers) for layers in itertools.count(period, period))
    fields = next(made for made in candidates if _parameter_bytes(made) >= gib * 2**30)
    settings = {"quantization_config": {"quant_method": "mxfp4"}} if fields["model_type"] == "gpt_oss" else {}
    (directory / "config.json").write_text(json.dumps(fields | settings))
    tensors = {label: _of_ones(*kind) for label, kind in _stored(fields).items()}
    write_safetensors(epath.Path(directory / "model.safetensors"), tensors)
    return max(tensor.num_bytes for tensor in tensors.values())


def _of_layers(name: str, layers: int) -> dict:
    """The fields that depend on how many layers there are."""
    if not name.startswith("gemma4"):
        return {"num_hidden_layers": layers}
    windows = 4 if name == "gemma4_e2b" else 1
    kinds = ["sliding_attention"] * windows + ["full_attention"]
    shared = {"num_kv_shared_layers": layers // 2} if name == "gemma4_e2b" else {}
    return shared | {"num_hidden_layers": layers, "layer_types": kinds * (layers // len(kinds))}


def _parameters(fields: dict) -> dict[str, tuple[int, ...]]:
    """Tensors that are loaded, by name, as the table of the family has them."""
    family = get_family(fields)
    return {rule.source: rule.shape for rule in family.tensor_table(family.decoder_config(fields)) if rule.path}


def _parameter_bytes(fields: dict) -> int:
    return _BF16.itemsize * sum(map(math.prod, _parameters(fields).values()))


def _stored(fields: dict) -> dict[str, Kind]:
    """Shapes and dtypes of the tensors of a published file."""
    tensors: dict[str, Kind] = {label: (shape, _BF16) for label, shape in _parameters(fields).items()}
    if fields["model_type"] == "gpt_oss":
        return _in_mxfp4(tensors)
    if fields["model_type"] in stacked_experts.MODEL_TYPES:
        return _stacked(tensors, fields)
    return tensors


def _in_mxfp4(tensors: dict[str, Kind]) -> dict[str, Kind]:
    made = {}
    for label, (shape, dtype) in tensors.items():
        if len(shape) < 3:
            made[label] = (shape, dtype)
            continue
        experts, inputs, outputs = shape
        made[f"{label}_blocks"] = ((experts, outputs, inputs // 32, 16), _BYTE)
        made[f"{label}_scales"] = ((experts, outputs, inputs // 32), _BYTE)
    return made


def _stacked(tensors: dict[str, Kind], fields: dict) -> dict[str, Kind]:
    """All experts of a layer in two tensors, in place of those of each."""
    count, model, ffn = (fields[name] for name in ("num_experts", "hidden_size", "moe_intermediate_size"))
    made = {label: kind for label, kind in tensors.items() if ".mlp.experts." not in label}
    for layer in range(fields["num_hidden_layers"]):
        stem = f"model.layers.{layer}.mlp.experts"
        made[f"{stem}.gate_up_proj"] = ((count, 2 * ffn, model), _BF16)
        made[f"{stem}.down_proj"] = ((count, model, ffn), _BF16)
    return made


def _of_ones(shape: tuple[int, ...], dtype: np.dtype) -> PendingTensor:
    """As an exponent of MXFP4, a byte of 127 is a factor of 1."""
    return PendingTensor(shape, dtype, lambda: np.full(shape, 127 if dtype == _BYTE else 1, dtype))
