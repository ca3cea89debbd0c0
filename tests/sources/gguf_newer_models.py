"""Tiny torch models of the families of 2025 and 2026, and GGUF files of them as llama.cpp's conversion/ writes them.

Written after its base.py, qwen.py, gemma.py, deepseek.py and glm.py: `_parameters` is what all models write, and a
function a family what it writes besides or in its place; `_changed` is how tensors are changed. Names are those of the
`gguf` library, but for layers of multi-token prediction, which it does not know of all families that have them.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import transformers

from tests.models import families

_QUARTER = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.25}
_DELTA = families.DELTA | {
    "num_hidden_layers": 2,
    "full_attention_interval": 2,
    "head_dim": 32,
    "linear_num_value_heads": 6,  # three a key head: their order in a file is not undone by applying it again
    "rope_parameters": _QUARTER,
}
_OF_DELTA = families.OF_DELTA | {"norm_topk_prob": True}
_SIGMOIDS = {"scoring_func": "sigmoid"}
_GLM = families.GLM4_MOE | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}

# name -> fields of config.json
CASES = {
    "qwen35": _DELTA | {"model_type": "qwen3_5_text", "tie_word_embeddings": True, "mtp_num_hidden_layers": 1},
    "qwen35moe": _DELTA | _OF_DELTA | {"model_type": "qwen3_5_moe_text"},
    "qwen3next": _DELTA | _OF_DELTA | {"model_type": "qwen3_next", "attention_bias": True},
    "gemma4": families.GEMMA4 | families.SAME_KEYS,
    "gemma4 with experts": families.GEMMA4_MOE
    | {"num_hidden_layers": 3, "layer_types": families.GEMMA4["layer_types"][:3]},
    "gemma4 with shared keys": families.GEMMA4_SHARED,
    "deepseek2": families.LATENT
    | families.ROUTED
    | _SIGMOIDS
    | {
        "model_type": "deepseek_v3",
        "first_k_dense_replace": 1,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "rope_parameters": families.YARN | {"mscale": 0.8, "mscale_all_dim": 0.8, "rope_theta": 100.0},
    },
    "deepseek2 without query rank": families.LATENT
    | families.ROUTED
    | _SIGMOIDS
    | {
        "model_type": "deepseek_v3",
        "num_hidden_layers": 2,
        "first_k_dense_replace": 0,
        "q_lora_rank": None,
        "attention_bias": True,
        "n_group": 1,
        "topk_group": 1,
        "n_shared_experts": 2,
        "norm_topk_prob": False,
    },
    "glm4moe": _GLM | {"model_type": "glm4_moe", "use_qk_norm": True, "num_nextn_predict_layers": 1},
    "glm 4.7 flash": families.LATENT
    | families.ROUTED
    | {
        "model_type": "glm4_moe_lite",
        "num_hidden_layers": 2,
        "n_group": 1,
        "topk_group": 1,
        "v_head_dim": 24,
        "routed_scaling_factor": 1.8,
        "num_nextn_predict_layers": 1,
    },
}
_NEXTN = {
    "eh_proj.weight": "nextn.eh_proj.weight",
    "enorm.weight": "nextn.enorm.weight",
    "hnorm.weight": "nextn.hnorm.weight",
    "shared_head.norm.weight": "nextn.shared_head_norm.weight",
}
_SUFFIXES = (".weight", ".bias")
_Tensors = Iterator[tuple[str, np.ndarray]]


def torch_model(case: str) -> transformers.PreTrainedModel:
    fields = copy.deepcopy(families.SIZES | CASES[case])
    return families.random_model(transformers.AutoConfig.for_model(fields.pop("model_type"), **fields))


def write(path: Path, model: transformers.PreTrainedModel, tensors: dict | None = None, **metadata: object) -> Path:
    """A GGUF file of float32 tensors.

    Args:
      path: where to.
      model: the torch model.
      tensors: laid over those that are written; None takes one out.
      metadata: keys without the architecture's prefix, laid over what is written; None takes one out.
    """
    fields = _published(model.config)
    architecture, specific = _FAMILIES[fields["model_type"]]
    predicted = fields.get("mtp_num_hidden_layers") or fields.get("num_nextn_predict_layers") or 0
    if fields["model_type"] in ("deepseek_v3", "qwen3_next"):
        predicted = 0  # left out by the conversion
    blocks = fields["num_hidden_layers"] + predicted
    written = {"block_count": blocks} | _parameters(fields) | specific(fields)
    if predicted:
        written["nextn_predict_layers"] = predicted
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (written | metadata).items():
        _add(writer, f"{architecture}.{key}", value)
    _write_tokenizer(writer, fields)
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, blocks)
    for name, array in (dict(_stored(fields, _all_tensors(model, predicted), names)) | (tensors or {})).items():
        if array is not None:
            writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _published(config: transformers.PreTrainedConfig) -> dict:
    """Fields as a published config.json has them; transformers keeps by layer what differs in layers."""
    fields = config.to_dict()
    if "linear_attention" in fields.get("layer_types", ()):
        fields["full_attention_interval"] = fields["layer_types"].index("full_attention") + 1
    by_layer = list(fields.pop("per_layer_config", None) or [])
    if by_layer:
        own = config.to_dict()["per_layer_config"][by_layer[0]]
        fields |= {"global_head_dim": own["head_dim"], "num_global_key_value_heads": own.get("num_key_value_heads")}
    return fields


def _add(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif value is not None:
        adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        adders[type(value)](key, value)


def _parameters(fields: dict) -> dict:
    """What base.py writes for every text model."""
    rope = fields["rope_parameters"].get("full_attention", fields["rope_parameters"])
    experts = next((fields[key] for key in ("num_local_experts", "num_experts") if key in fields), None)
    used = next((fields[key] for key in ("num_experts_per_tok", "top_k_experts") if key in fields), None)
    made = {
        "context_length": fields["max_position_embeddings"],
        "embedding_length": fields["hidden_size"],
        "feed_forward_length": fields.get("intermediate_size"),
        "attention.head_count": fields["num_attention_heads"],
        "attention.head_count_kv": fields["num_key_value_heads"],
        "rope.freq_base": float(rope["rope_theta"]),
        "attention.layer_norm_rms_epsilon": fields["rms_norm_eps"],
        "expert_count": experts,
        "expert_used_count": used,
        "expert_group_count": fields.get("n_group"),
        "expert_group_used_count": fields.get("topk_group"),
        "expert_gating_func": {"sigmoid": 2, "softmax": 1}.get(fields.get("scoring_func")),
        "attention.key_length": fields.get("head_dim"),
        "attention.value_length": fields.get("head_dim"),
    }
    if rope["rope_type"] == "yarn":
        made["rope.scaling.type"] = "yarn"
        made["rope.scaling.factor"] = rope["factor"]
        made["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    if "sliding_attention" in fields["rope_parameters"]:
        made["rope.freq_base_swa"] = float(fields["rope_parameters"]["sliding_attention"]["rope_theta"])
    return made


def _of_delta(fields: dict) -> dict:
    return {
        "ssm.conv_kernel": fields["linear_conv_kernel_dim"],
        "ssm.state_size": fields["linear_key_head_dim"],
        "ssm.group_count": fields["linear_num_key_heads"],
        "ssm.time_step_rank": fields["linear_num_value_heads"],
        "ssm.inner_size": fields["linear_value_head_dim"] * fields["linear_num_value_heads"],
        "full_attention_interval": fields["full_attention_interval"],
        "rope.dimension_count": int(fields["head_dim"] * fields.get("partial_rotary_factor", 0.25)),
        "expert_feed_forward_length": fields.get("moe_intermediate_size"),
        "expert_shared_feed_forward_length": fields.get("shared_expert_intermediate_size"),
    }


def _of_qwen35(fields: dict) -> dict:
    return _of_delta(fields) | {"rope.dimension_sections": [11, 11, 10, 0]}


def _of_gemma4(fields: dict) -> dict:
    slides = [kind == "sliding_attention" for kind in fields["layer_types"]]
    made = {
        "final_logit_softcapping": fields["final_logit_softcapping"],
        "attention.sliding_window": fields["sliding_window"],
        "attention.shared_kv_layers": fields["num_kv_shared_layers"],
        "embedding_length_per_layer_input": fields["hidden_size_per_layer_input"] or 0,
        "attention.sliding_window_pattern": slides,
        "expert_feed_forward_length": fields.get("moe_intermediate_size"),
    }
    for ending, width in (("", fields["global_head_dim"]), ("_swa", fields["head_dim"])):
        made[f"attention.key_length{ending}"] = made[f"attention.value_length{ending}"] = width
        made[f"rope.dimension_count{ending}"] = width
    layers, width = fields["num_hidden_layers"], fields["intermediate_size"]
    if fields["use_double_wide_mlp"]:
        own = layers - fields["num_kv_shared_layers"]
        made["feed_forward_length"] = [width] * own + [2 * width] * (layers - own)
    if fields.get("num_global_key_value_heads") is not None:
        heads = {True: fields["num_key_value_heads"], False: fields["num_global_key_value_heads"]}
        made["attention.head_count_kv"] = [heads[one] for one in slides]
    return made


def _of_deepseek(fields: dict) -> dict:
    rotated, rank = fields["qk_rope_head_dim"], fields["kv_lora_rank"]
    made = {
        "attention.head_count_kv": 1,
        "leading_dense_block_count": fields.get("first_k_dense_replace", 0),
        "vocab_size": fields["vocab_size"],
        "attention.q_lora_rank": fields.get("q_lora_rank"),
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + rotated,
        "attention.value_length": rank,
        "attention.key_length_mla": fields["qk_nope_head_dim"] + rotated,
        "attention.value_length_mla": fields["v_head_dim"],
        "expert_feed_forward_length": fields["moe_intermediate_size"],
        "expert_count": fields["n_routed_experts"],
        "expert_shared_count": fields["n_shared_experts"],
        "expert_weights_scale": fields["routed_scaling_factor"],
        "expert_weights_norm": fields["norm_topk_prob"] or None,
        "rope.dimension_count": rotated,
    }
    if "mscale_all_dim" in fields["rope_parameters"]:
        made["rope.scaling.yarn_log_multiplier"] = 0.1 * fields["rope_parameters"]["mscale_all_dim"]
    return made


def _of_glm_lite(fields: dict) -> dict:
    """Its published config.json says with how many layers without experts it begins; transformers keeps a list."""
    return _of_deepseek(fields | {"first_k_dense_replace": fields["mlp_layer_types"].count("dense")})


def _of_glm(fields: dict) -> dict:
    share = fields["rope_parameters"]["partial_rotary_factor"]
    return {
        "rope.dimension_count": int(fields["head_dim"] * share),
        "expert_count": fields["n_routed_experts"],
        "expert_feed_forward_length": fields["moe_intermediate_size"],
        "expert_shared_count": fields["n_shared_experts"],
        "leading_dense_block_count": fields["first_k_dense_replace"],
        "expert_gating_func": 2,
        "expert_weights_scale": fields["routed_scaling_factor"],
        "expert_weights_norm": fields["norm_topk_prob"],
    }


_FAMILIES: dict[str, tuple[str, Callable[[dict], dict]]] = {
    "qwen3_5_text": ("qwen35", _of_qwen35),
    "qwen3_5_moe_text": ("qwen35moe", _of_qwen35),
    "qwen3_next": ("qwen3next", _of_delta),
    "gemma4_text": ("gemma4", _of_gemma4),
    "deepseek_v3": ("deepseek2", _of_deepseek),
    "glm4_moe": ("glm4moe", _of_glm),
    "glm4_moe_lite": ("deepseek2", _of_glm_lite),
}


def _write_tokenizer(writer: gguf.GGUFWriter, fields: dict) -> None:
    """Without merges: what goes into the config."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("glm4" if fields["model_type"].startswith("glm") else "qwen35")
    writer.add_token_list([f"token{id_}" for id_ in range(fields["vocab_size"])])
    writer.add_bos_token_id(fields["bos_token_id"])
    writer.add_eos_token_id(fields["eos_token_id"])
    writer.add_pad_token_id(fields["pad_token_id"])


def _all_tensors(model: transformers.PreTrainedModel, predicted: int) -> _Tensors:
    """The model's, and a layer of multi-token prediction like its last one, with what that has besides."""
    state, config = {name: tensor.numpy() for name, tensor in model.state_dict().items()}, model.config
    yield from (pair for pair in state.items() if pair[0] != "lm_head.weight" or not config.tie_word_embeddings)
    if predicted:
        last, behind = (f"model.layers.{config.num_hidden_layers + step}." for step in (-1, 0))
        yield from ((name.replace(last, behind), array) for name, array in state.items() if name.startswith(last))
        width = config.hidden_size
        for name in _NEXTN:
            yield f"{behind}{name}", np.ones((width, 2 * width) if name == "eh_proj.weight" else width, np.float32)


def _stored(fields: dict, tensors: _Tensors, names: gguf.TensorNameMap) -> _Tensors:
    if fields["model_type"] == "gemma4_text":
        rope, half = fields["rope_parameters"]["full_attention"], fields["global_head_dim"] // 2
        rotating = int(fields["global_head_dim"] * rope["partial_rotary_factor"] / 2)
        yield "rope_freqs.weight", np.float32([1.0] * rotating + [1e30] * (half - rotating))
    for name, array in tensors:
        layer = name.split(".")[2] if name.startswith("model.layers.") else ""
        for changed, own in _changed(fields, name, array):
            if changed.startswith("blk."):
                yield changed, own
                continue
            ending = changed.removeprefix(f"model.layers.{layer}.")
            yield f"blk.{layer}.{_NEXTN[ending]}" if ending in _NEXTN else names.get_name(changed, _SUFFIXES), own


def _changed(fields: dict, name: str, array: np.ndarray) -> _Tensors:
    """The tensors that one becomes, still by names of Hugging Face."""
    if name.endswith("mlp.experts.gate_up_proj"):
        stem, half = name.removesuffix("gate_up_proj"), array.shape[1] // 2
        yield f"{stem}gate_proj.weight", array[:, :half]
        yield f"{stem}up_proj.weight", array[:, half:]
    elif name.endswith((".experts.down_proj", ".experts.gate_up_proj", "layer_scalar")):
        yield f"{name}.weight", array
    elif name.endswith("e_score_correction_bias"):
        yield f"{name.removesuffix('_bias')}.bias", array
    elif name.endswith(("router.scale", "router.per_expert_scale")):
        part = "ffn_gate_inp" if name.endswith("router.scale") else "ffn_down_exps"
        yield f"blk.{name.split('.')[2]}.{part}.scale", array
    elif name.endswith("kv_b_proj.weight"):
        plain, values = fields["qk_nope_head_dim"], fields["v_head_dim"]
        by_head = array.reshape(fields["num_key_value_heads"], plain + values, -1)
        yield name.replace("kv_b", "k_b"), by_head[:, :plain].swapaxes(1, 2)
        yield name.replace("kv_b", "v_b"), by_head[:, plain:]
    elif fields["model_type"].startswith(("qwen3_5", "qwen3_next")):
        yield from _changed_qwen(fields, name, array)
    else:
        yield name, array


def _changed_qwen(fields: dict, name: str, array: np.ndarray) -> _Tensors:
    if fields["model_type"] != "qwen3_next" and ".linear_attn." in name:
        array = _tiled(fields, name.partition(".linear_attn.")[2], array)
    if name.endswith("in_proj_qkvz.weight"):
        heads, keys = fields["linear_num_key_heads"], fields["linear_key_head_dim"]
        by_head = array.reshape(heads, -1, array.shape[-1])
        values = (by_head.shape[1] - 2 * keys) // 2
        parts = np.split(by_head, np.cumsum([keys, keys, values]), axis=1)
        *mixed, gates = (part.reshape(-1, array.shape[-1]) for part in parts)
        layer = name.split(".")[2]
        yield f"blk.{layer}.attn_qkv.weight", np.concatenate(mixed)
        yield f"blk.{layer}.attn_gate.weight", gates
    elif name.endswith(".A_log"):
        yield name, -np.exp(array)
    elif name.endswith(".dt_bias"):
        yield name.replace("dt_bias", "dt_proj.bias"), array
    elif "conv1d" in name:
        yield name, array.reshape(array.shape[0], array.shape[-1])
    elif name.endswith("norm.weight") and "linear_attn" not in name:
        yield name, array + 1
    else:
        yield name, array


def _tiled(fields: dict, name: str, array: np.ndarray) -> np.ndarray:
    """[key head, value head of it, …] to [value head of a key head, key head, …], where there are value heads."""
    keys, group = fields["linear_num_key_heads"], fields["linear_num_value_heads"] // fields["linear_num_key_heads"]
    if name == "norm.weight":
        return array
    if name == "out_proj.weight":
        return np.ascontiguousarray(_tiled(fields, "", array.T).T)
    before = 2 * keys * fields["linear_key_head_dim"] if name in ("in_proj_qkv.weight", "conv1d.weight") else 0
    values = array[before:].reshape(keys, group, -1, *array.shape[1:]).swapaxes(0, 1).reshape(-1, *array.shape[1:])
    return np.concatenate([array[:before], values])
