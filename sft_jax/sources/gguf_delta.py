"""Qwen 3.5 and 3.6 (`qwen35`, `qwen35moe`) and Qwen3-Next (`qwen3next`) in GGUF files.

llama.cpp stores 1 + w of all norms but that in the delta net, -exp(A_log) in place of A_log, and the convolution
without its axis of one. Of Qwen 3.5 the value heads that read the same key head stand apart: the v-th of key head k is
stored at v * key heads + k. Of Qwen3-Next they keep their places, but queries, keys and values are stored one behind
the other, not key head by key head. See conversion/qwen.py in its repository.
"""

import functools
import re

import numpy as np

from sft_jax.sources import gguf_experts
from sft_jax.sources.gguf_conventions import (
    HEAD_NORMS,
    KEYS,
    PREDICTED,
    PROJECTIONS,
    Architecture,
    has_bias,
    rope_fields,
    shared_config,
)
from sft_jax.sources.gguf_file import GgufFile, tensor_entry
from sft_jax.sources.gguf_layouts import Layout, as_row, gathered, minus_one
from sft_jax.sources.gguf_metadata import ModelMetadata
from sft_jax.sources.tensors import SourceError, TensorEntry

_INTERVAL = 4  # layers to one with attention, where a file does not say
_FUSED = re.compile(r"blk\.(?P<layer>\d+)\.(?P<part>attn_qkv|attn_gate)\.weight")


def _delta_config(metadata: ModelMetadata, **known: int) -> dict:
    """What Qwen3-Next and Qwen 3.5 have alike."""
    shared = shared_config(metadata, partial_rope=True, **known)
    rope = rope_fields(metadata, shared, theta=None)
    share = metadata.integer("rope.dimension_count", shared["head_dim"]) / shared["head_dim"]
    values, inner = metadata.integer("ssm.time_step_rank"), metadata.integer("ssm.inner_size")
    if inner % values:
        raise SourceError(
            f"{metadata.file.path}: {metadata.name('ssm.inner_size')} is {inner}; expected a multiple of "
            f"{metadata.name('ssm.time_step_rank')} = {values}, the number of value heads."
        )
    interval = metadata.integer("full_attention_interval", _INTERVAL)
    return shared | {
        "hidden_act": "silu",
        "rope_parameters": (rope["rope_scaling"] or {"rope_type": "default"})
        | {"rope_theta": rope["rope_theta"], "partial_rotary_factor": share},
        "attention_bias": has_bias(metadata, "attn"),
        "linear_conv_kernel_dim": metadata.integer("ssm.conv_kernel"),
        "linear_num_key_heads": metadata.integer("ssm.group_count"),
        "linear_num_value_heads": values,
        "linear_key_head_dim": metadata.integer("ssm.state_size"),
        "linear_value_head_dim": inner // values,
        "layer_types": [
            "linear_attention" if (layer + 1) % interval else "full_attention"
            for layer in range(shared["num_hidden_layers"])
        ],
    }


def _qwen35(metadata: ModelMetadata) -> dict:
    """The sections of its rotary embedding tell positions of images apart; of text all are equal."""
    return _delta_config(metadata) | {"architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text"}


def _qwen35moe(metadata: ModelMetadata) -> dict:
    width = metadata.integer("expert_feed_forward_length")
    return (
        _delta_config(metadata, intermediate_size=width)
        | _experts(metadata, width)
        | {"architectures": ["Qwen3_5MoeForCausalLM"], "model_type": "qwen3_5_moe_text"}
    )


def _qwen3next(metadata: ModelMetadata) -> dict:
    """The file does not say that weights of experts sum to 1, which llama.cpp takes for granted."""
    width = metadata.integer("expert_feed_forward_length")
    return (
        _delta_config(metadata, intermediate_size=metadata.integer("feed_forward_length", width))
        | _experts(metadata, width)
        | {"architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", "norm_topk_prob": True}
    )


def _experts(metadata: ModelMetadata, width: int) -> dict:
    return {
        "moe_intermediate_size": width,
        "shared_expert_intermediate_size": metadata.integer("expert_shared_feed_forward_length"),
        "num_experts": metadata.integer("expert_count"),
        "num_experts_per_tok": metadata.integer("expert_used_count"),
    }


def _value_heads(width: str | None, behind_keys: bool = False) -> Layout:
    """Rows of value heads back with those of the same key head.

    Args:
        width: the field of the config with the rows of a head; None is one.
        behind_keys: the rows of all queries and keys, which keep their places, are before them.
    """

    def layout(entry: TensorEntry, config: dict, name: str) -> TensorEntry:
        height = config[width] if width else 1
        first = 2 * config["linear_num_key_heads"] * config["linear_key_head_dim"] if behind_keys else 0
        order = [first + head * height for head in _stored_heads(config, name)]
        _check_rows(entry, first + len(order) * height, name)
        spans = [(entry, row, row + height) for row in order]
        return gathered([(entry, 0, first), *spans] if first else spans)

    return layout


def _stored_heads(config: dict, name: str) -> list[int]:
    """For each value head the place where it is stored: with 2 key heads and 4 value heads 0, 2, 1, 3."""
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    if values % keys:
        raise SourceError(f"{name} is of {values} value heads; expected a multiple of the {keys} key heads.")
    return [place * keys + key for key in range(keys) for place in range(values // keys)]


def _check_rows(entry: TensorEntry, rows: int, name: str) -> None:
    if entry.rows != rows:
        raise SourceError(f"{name} has {entry.rows} rows; the metadata (ssm.*) has it that there are {rows}.")


def _columns_of_value_heads(entry: TensorEntry, config: dict, name: str) -> TensorEntry:
    heads, width = _stored_heads(config, name), config["linear_value_head_dim"]
    if len(entry.shape) != 2 or entry.shape[1] != len(heads) * width:
        raise SourceError(f"{name} has shape {entry.shape}; expected {len(heads)} value heads x {width} columns.")

    def read(start: int, stop: int) -> np.ndarray:
        stored = entry.read(start, stop).reshape(stop - start, len(heads), width)
        return stored[:, heads].reshape(stop - start, -1)

    return TensorEntry(entry.shape, entry.dtype, read)


def _logarithm(entry: TensorEntry, config: dict, name: str) -> TensorEntry:
    """A_log of -exp(A_log)."""

    def read(start: int, stop: int) -> np.ndarray:
        stored = entry.read(start, stop)
        if not np.all(stored < 0):
            raise SourceError(f"{name} holds {stored.max():g}; expected negative numbers, as -exp(A_log) are.")
        return np.log(-stored)

    return TensorEntry(entry.shape, entry.dtype, read)


def _channels(entry: TensorEntry, config: dict, name: str) -> TensorEntry:
    """[channels, width] -> [channels, 1, width]."""
    if len(entry.shape) != 2:
        raise SourceError(f"{name} has shape {entry.shape}; expected (channels, width of the convolution).")
    shape = (entry.shape[0], 1, entry.shape[1])
    return TensorEntry(shape, entry.dtype, lambda start, stop: entry.read(start, stop)[:, None])


def _in_turn(*layouts: Layout) -> Layout:
    return lambda entry, config, name: functools.reduce(lambda made, layout: layout(made, config, name), layouts, entry)


def _by_key_head(file: GgufFile, config: dict) -> tuple[dict[str, TensorEntry], set[str]]:
    """`in_proj_qkvz` of Qwen3-Next: of each key head its query, key, values and output gates.

    Returns:
        The tensors by Hugging Face name, and the names of those in the file that they are made of.

    Raises:
        SourceError: one of the two tensors that it is made of is missing, or has other rows than the metadata says.
    """
    found: dict[str, dict[str, TensorEntry]] = {}
    for name, tensor in file.tensors.items():
        if match := _FUSED.fullmatch(name):
            found.setdefault(match["layer"], {})[match["part"]] = tensor_entry(file.path, tensor)
    made, used = {}, set()
    for layer, parts in found.items():
        names = {part: f"blk.{layer}.{part}.weight" for part in ("attn_qkv", "attn_gate")}
        if missing := [name for part, name in names.items() if part not in parts]:
            raise SourceError(f"{file.path}: has no tensor {missing[0]}: it is not a whole model.")
        keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
        values = config["linear_num_value_heads"] * config["linear_value_head_dim"]
        _check_rows(parts["attn_qkv"], 2 * keys + values, f"{file.path}: {names['attn_qkv']}")
        _check_rows(parts["attn_gate"], values, f"{file.path}: {names['attn_gate']}")
        made[f"model.layers.{layer}.linear_attn.in_proj_qkvz.weight"] = gathered(_spans(parts, config, keys, values))
        used |= set(names.values())
    return made, used


def _spans(parts: dict[str, TensorEntry], config: dict, keys: int, values: int) -> list[tuple[TensorEntry, int, int]]:
    """Of each key head its rows in [all queries, all keys, all values] and in the gates."""
    mixed, gate, heads = parts["attn_qkv"], parts["attn_gate"], config["linear_num_key_heads"]
    width, group = keys // heads, values // heads
    return [
        (entry, first + head * height, first + (head + 1) * height)
        for head in range(heads)
        for entry, first, height in (
            (mixed, 0, width),
            (mixed, keys, width),
            (mixed, 2 * keys, group),
            (gate, 0, group),
        )
    ]


_NORMS = {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}
_LAYER = {
    **_NORMS,
    **HEAD_NORMS,
    **PROJECTIONS,
    "ssm_a": "linear_attn.A_log",
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}
_OF_QWEN35 = {
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_alpha": "linear_attn.in_proj_a",
}
_OF_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_LAYOUTS = {
    **dict.fromkeys(("output_norm", *_NORMS, *HEAD_NORMS), minus_one),
    "ssm_a": _logarithm,
    "ssm_conv1d": _channels,
    "ffn_gate_inp_shexp": as_row,  # one row, which some files have without the axis
}
_LAYOUTS_OF_QWEN35 = _LAYOUTS | {
    "attn_qkv": _value_heads("linear_value_head_dim", behind_keys=True),
    "attn_gate": _value_heads("linear_value_head_dim"),
    "ssm_alpha": _value_heads(None),
    "ssm_beta": _value_heads(None),
    "ssm_dt": _value_heads(None),
    "ssm_a": _in_turn(_value_heads(None), _logarithm),
    "ssm_conv1d": _in_turn(_value_heads("linear_value_head_dim", behind_keys=True), _channels),
    "ssm_out": _columns_of_value_heads,
}
_KEYS = KEYS | {
    "full_attention_interval",
    *(f"ssm.{key}" for key in ("conv_kernel", "state_size", "group_count", "time_step_rank", "inner_size")),
}
_KEYS_OF_QWEN35 = _KEYS | {"rope.dimension_sections", PREDICTED}
_KEYS_OF_EXPERTS = {"expert_feed_forward_length", "expert_shared_feed_forward_length"}

ARCHITECTURES = {
    "qwen35": Architecture(_qwen35, _LAYER | _OF_QWEN35, keys=_KEYS_OF_QWEN35, layouts=_LAYOUTS_OF_QWEN35),
    "qwen35moe": Architecture(
        _qwen35moe,
        _LAYER | _OF_QWEN35 | _OF_EXPERTS,
        keys=_KEYS_OF_QWEN35 | _KEYS_OF_EXPERTS,
        layouts=_LAYOUTS_OF_QWEN35,
        composed=(gguf_experts.one_by_one,),
    ),
    "qwen3next": Architecture(
        _qwen3next,
        _LAYER | _OF_EXPERTS | {"ssm_ba": "linear_attn.in_proj_ba", "ssm_in": "linear_attn.in_proj_qkvz"},
        keys=_KEYS | _KEYS_OF_EXPERTS,
        layouts=_LAYOUTS,
        composed=(gguf_experts.one_by_one, _by_key_head),
    ),
}
