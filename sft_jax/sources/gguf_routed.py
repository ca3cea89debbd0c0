"""DeepSeek V3 and GLM 4.7 Flash (`deepseek2`), and GLM 4.5 to 4.7 (`glm4moe`) in GGUF files: routers with sigmoids,
corrections and groups.

llama.cpp splits `kv_b_proj` of latent attention by head, in keys, which it stores transposed, and values, and says that
there is one head of keys (conversion/deepseek.py). Layers of multi-token prediction lie behind the others.
"""

import functools
import re

import numpy as np

from sft_jax.sources import gguf_experts
from sft_jax.sources.gguf_conventions import (
    FEED_FORWARD,
    HEAD_NORMS,
    INSTEAD,
    KEYS,
    PREDICTED,
    PROJECTIONS,
    TWO_NORMS,
    Architecture,
    expect,
    has_bias,
    has_tensor,
    rope_fields,
    shared_config,
)
from sft_jax.sources.gguf_file import GgufFile, tensor_entry
from sft_jax.sources.gguf_metadata import ModelMetadata
from sft_jax.sources.tensors import SourceError, TensorEntry

_SIGMOID = 2  # of llama.cpp's functions that make weights of a router's scores
_SPLIT = re.compile(r"blk\.(?P<layer>\d+)\.(?P<part>attn_k_b|attn_v_b)\.weight")


def _deepseek2(metadata: ModelMetadata) -> dict:
    """GLM 4.7 Flash differs in its tokenizer alone, and in that its files do not name the router's function."""
    is_glm = metadata.file.metadata.get("tokenizer.ggml.pre") == "glm4"
    _expect_sigmoid(metadata, absent=_SIGMOID if is_glm else None)
    latent = _latent_attention(metadata)
    rotated = latent["qk_rope_head_dim"]
    shared = shared_config(metadata, head_dim=rotated, num_key_value_heads=metadata.integer("attention.head_count"))
    experts, bias = _experts(metadata, shared["num_hidden_layers"]), has_bias(metadata, "attn")
    common = shared | latent | experts | _deepseek_rope(metadata, shared) | {"attention_bias": bias}
    if not is_glm:
        return common | {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3"}
    dense = experts["first_k_dense_replace"]
    kinds = ["dense" if layer < dense else "sparse" for layer in range(shared["num_hidden_layers"])]
    glm = {"architectures": ["Glm4MoeLiteForCausalLM"], "model_type": "glm4_moe_lite", "mlp_layer_types": kinds}
    return {name: value for name, value in common.items() if name != "first_k_dense_replace"} | glm


def _glm4moe(metadata: ModelMetadata) -> dict:
    _expect_sigmoid(metadata, absent=_SIGMOID)
    shared = shared_config(metadata, partial_rope=True)
    rope = rope_fields(metadata, shared)
    share = metadata.integer("rope.dimension_count", shared["head_dim"]) / shared["head_dim"]
    return (
        shared
        | _experts(metadata, shared["num_hidden_layers"], groups=1)
        | {
            "architectures": ["Glm4MoeForCausalLM"],
            "model_type": "glm4_moe",
            "hidden_act": "silu",
            "rope_parameters": (rope["rope_scaling"] or {"rope_type": "default"})
            | {"rope_theta": rope["rope_theta"], "partial_rotary_factor": share},
            "attention_bias": has_bias(metadata, "attn"),
            "use_qk_norm": has_tensor(metadata, r"attn_q_norm\.weight"),
        }
    )


def _expect_sigmoid(metadata: ModelMetadata, absent: int | None) -> None:
    """Raises SourceError where a router has another function; a file without one is of DeepSeek V2, with a softmax."""
    key = "expert_gating_func"
    if metadata.get(key, absent) != _SIGMOID:
        raise SourceError(
            f"{metadata.file.path}: {metadata.name(key)} is {metadata.get(key)}; expected {_SIGMOID}, that is "
            f"sigmoids, as DeepSeek V3 has. DeepSeek V2 is not supported. {INSTEAD}"
        )


def _latent_attention(metadata: ModelMetadata) -> dict:
    """The widths of a head are those before keys are compressed (`*_mla`); the others follow from the ranks."""
    rotated, rank = metadata.integer("rope.dimension_count"), metadata.integer("attention.kv_lora_rank")
    head_dim = metadata.integer("attention.key_length_mla")
    expect(metadata, "attention.key_length", rank + rotated, "kv_lora_rank + rope.dimension_count =")
    expect(metadata, "attention.value_length", rank, "kv_lora_rank =")
    if head_dim <= rotated:
        raise SourceError(
            f"{metadata.file.path}: {metadata.name('attention.key_length_mla')} is {head_dim}; expected more than "
            f"{metadata.name('rope.dimension_count')} = {rotated}, which are a part of it."
        )
    ranked = metadata.get("attention.q_lora_rank") is not None
    return {
        "kv_lora_rank": rank,
        "q_lora_rank": metadata.integer("attention.q_lora_rank") if ranked else None,
        "qk_nope_head_dim": head_dim - rotated,
        "qk_rope_head_dim": rotated,
        "v_head_dim": metadata.integer("attention.value_length_mla"),
        "rope_interleave": True,
    }


def _deepseek_rope(metadata: ModelMetadata, shared: dict) -> dict:
    """The file has a tenth of `mscale_all_dim`, to which `mscale` is equal in all models."""
    rope = rope_fields(metadata, shared)
    scaling = rope["rope_scaling"]
    if (scaling or {}).get("rope_type") == "yarn":
        weight = round(10 * metadata.real("rope.scaling.yarn_log_multiplier"), 6)
        scaling = scaling | {"mscale": weight, "mscale_all_dim": weight}
    return {"hidden_act": "silu", "rope_theta": rope["rope_theta"], "rope_scaling": scaling}


def _experts(metadata: ModelMetadata, layers: int, groups: int | None = None) -> dict:
    """The fields about experts.

    Args:
      metadata: of the model.
      layers: how many there are.
      groups: of experts, and those that a token takes, where a file does not say; None: it must, since old files of
        DeepSeek V3 leave them out, and llama.cpp then takes experts that the model would not.
    """
    dense = metadata.integer("leading_dense_block_count", 0, smallest=0)
    if dense > layers:
        raise SourceError(
            f"{metadata.file.path}: {metadata.name('leading_dense_block_count')} is {dense}; there are {layers} layers."
        )
    return {
        "first_k_dense_replace": dense,
        "moe_intermediate_size": metadata.integer("expert_feed_forward_length"),
        "n_routed_experts": metadata.integer("expert_count"),
        "n_shared_experts": metadata.integer("expert_shared_count", smallest=0),
        "num_experts_per_tok": metadata.integer("expert_used_count"),
        "n_group": metadata.integer("expert_group_count", groups),
        "topk_group": metadata.integer("expert_group_used_count", groups),
        "norm_topk_prob": metadata.truth("expert_weights_norm", False),
        "routed_scaling_factor": metadata.real("expert_weights_scale", 1.0),
    }


def _latent_keys_and_values(file: GgufFile, config: dict) -> tuple[dict[str, TensorEntry], set[str]]:
    """`kv_b_proj` [heads * (keys + values), rank] of `attn_k_b` [heads, rank, keys], `attn_v_b` [heads, values, rank].

    Returns:
        The tensors by Hugging Face name, and the names of those in the file that they are made of.

    Raises:
        SourceError: one of the two is missing, or they have other shapes than the metadata says.
    """
    found: dict[str, dict[str, TensorEntry]] = {}
    for name, tensor in file.tensors.items():
        if match := _SPLIT.fullmatch(name):
            found.setdefault(match["layer"], {})[match["part"]] = tensor_entry(file.path, tensor)
    heads, rank = config["num_attention_heads"], config["kv_lora_rank"]
    plain, values = config["qk_nope_head_dim"], config["v_head_dim"]
    expected = {"attn_k_b": (heads, rank, plain), "attn_v_b": (heads, values, rank)}
    made, used = {}, set()
    for layer, parts in found.items():
        for part, shape in expected.items():
            name = f"blk.{layer}.{part}.weight"
            if part not in parts:
                raise SourceError(f"{file.path}: has no tensor {name}: it is not a whole model.")
            if parts[part].shape != shape:
                raise SourceError(f"{file.path}: {name} has shape {parts[part].shape}; the metadata says {shape}.")
            used.add(name)
        made[f"model.layers.{layer}.self_attn.kv_b_proj.weight"] = TensorEntry(
            (heads * (plain + values), rank),
            np.dtype(np.float32),
            functools.partial(_read_keys_and_values, parts["attn_k_b"], parts["attn_v_b"]),
        )
    return made, used


def _read_keys_and_values(keys: TensorEntry, values: TensorEntry, start: int, stop: int) -> np.ndarray:
    """Of the heads that the rows are of, all rows are read."""
    height = keys.shape[2] + values.shape[1]
    first, after = start // height, -(-stop // height)
    both = np.concatenate([keys.read(first, after).swapaxes(1, 2), values.read(first, after)], axis=1)
    return both.reshape(-1, both.shape[2])[start - first * height : stop - first * height]


_MIXTURE = {
    "ffn_gate_inp": "mlp.gate",
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
_LATENT = {
    "attn_q": "self_attn.q_proj",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_output": "self_attn.o_proj",
}
_KEYS = KEYS | {
    PREDICTED,
    "leading_dense_block_count",
    "expert_feed_forward_length",
    "expert_shared_count",
    "expert_weights_scale",
    "expert_weights_norm",
    "expert_gating_func",
    "expert_group_count",
    "expert_group_used_count",
}
_KEYS_OF_LATENT = {
    "rope.scaling.yarn_log_multiplier",
    *(f"attention.{key}" for key in ("q_lora_rank", "kv_lora_rank", "key_length_mla", "value_length_mla")),
}

ARCHITECTURES = {
    "deepseek2": Architecture(
        _deepseek2,
        TWO_NORMS | _LATENT | FEED_FORWARD | _MIXTURE,
        keys=_KEYS | _KEYS_OF_LATENT,
        composed=(gguf_experts.one_by_one, _latent_keys_and_values),
    ),
    "glm4moe": Architecture(
        _glm4moe,
        {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}
        | HEAD_NORMS
        | PROJECTIONS
        | _MIXTURE,
        keys=_KEYS,
        composed=(gguf_experts.one_by_one,),
    ),
}
