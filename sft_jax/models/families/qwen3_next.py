"""Qwen3-Next (`qwen3_next`), and the configs of Qwen 3.5 and 3.6 (`qwen3_5`): gated delta nets in three of four layers,
gated attention in the fourth, and in the mixtures an expert with a gate that every token takes."""

import functools
import reprlib

import numpy as np

from sft_jax.models.config import DecoderConfig
from sft_jax.models.families import llama, qwen, tables
from sft_jax.models.families.tables import ConfigReader, TensorRule

_INTERVAL, _SHARE, _HEAD = 4, 0.25, 256  # where a config does not say: layers to one with attention, what is rotated


def decoder_config(hf_config: dict) -> DecoderConfig:
    """The decoder that a Hugging Face config describes.

    Raises:
        ValueError: a key is missing, or asks for something this port does not implement.
    """
    kind = hf_config["model_type"]
    has_experts = kind != "qwen3_5_text"
    config = ConfigReader(_with_defaults(hf_config, has_experts))
    config.expect("hidden_act", "silu")
    config.expect("attn_output_gate", True)
    config.expect("output_gate_type", "swish")
    config.expect("mamba_ssm_dtype", "float32")
    config.expect("use_sliding_window", False)
    config.expect("mtp_num_hidden_layers", 1, 0)
    config.skip("mtp_use_dedicated_embeddings", "sliding_window", "max_window_layers")
    sizes, bias = tables.sizes(config, head_dim=_HEAD), config.get("attention_bias", False)
    made = DecoderConfig(
        **sizes,
        **tables.rope(config, sizes["head_dim"]),
        **_delta_fields(config, sizes["num_layers"]),
        **(_experts(config, kind) if has_experts else {}),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        norm_offset=1.0,
        qk_norm="head",
        attention_gate=True,
        tie_embeddings=config.get("tie_word_embeddings", False),
        qkv_bias=bias,
        out_bias=bias,
    )
    config.finish()
    return made


def _with_defaults(hf_config: dict, has_experts: bool) -> dict:
    """A config that says what is rotated; and with experts, their width in place of that of layers without."""
    ropes = [hf_config.get(name) or {} for name in ("rope_parameters", "rope_scaling")]
    stated = {} if any("partial_rotary_factor" in rope for rope in ropes) else {"partial_rotary_factor": _SHARE}
    if has_experts and "moe_intermediate_size" in hf_config:
        hf_config = hf_config | {"intermediate_size": hf_config["moe_intermediate_size"]}
    return stated | hf_config


def _delta_fields(config: ConfigReader, layers: int) -> dict:
    """The fields of `DecoderConfig` about gated delta nets, and which layers these are."""
    interval = config.get("full_attention_interval", _INTERVAL)
    default = ["full_attention" if (layer + 1) % interval == 0 else "linear_attention" for layer in range(layers)]
    kinds = config.get("layer_types", default)
    if set(kinds) - {"full_attention", "linear_attention"} or len(kinds) != layers:
        raise ValueError(
            f"config.json has layer_types={reprlib.repr(kinds)}; implemented: 'linear_attention' or 'full_attention' "
            f"for each of {layers} layers"
        )
    return {
        "delta_key_heads": config.get("linear_num_key_heads", 16),
        "delta_value_heads": config.get("linear_num_value_heads", 32),
        "delta_key_dim": config.get("linear_key_head_dim", 128),
        "delta_value_dim": config.get("linear_value_head_dim", 128),
        "delta_conv_width": config.get("linear_conv_kernel_dim", 4),
        "layer_overrides": tuple((("mixer", "delta"),) if kind == "linear_attention" else () for kind in kinds),
    }


def _experts(config: ConfigReader, kind: str) -> dict:
    """Every layer has experts; those that mix in plain layers are not implemented."""
    config.require("moe_intermediate_size")
    config.expect("decoder_sparse_step", 1)
    config.expect("mlp_only_layers", [])
    count, taken = (512, 10) if kind == "qwen3_next" else (256, 8)
    sums_to_one = config.get("norm_topk_prob", True)
    if kind == "qwen3_5_moe_text" and not sums_to_one:
        raise ValueError("config.json has norm_topk_prob=False; implemented for model_type='qwen3_5_moe_text': True")
    return tables.experts(config, config.get("num_experts", count), config.get("num_experts_per_tok", taken)) | {
        "normalize_expert_weights": sums_to_one,
        "shared_ffn_dim": config.get("shared_expert_intermediate_size", 512),
        "shared_gate": True,
    }


def tensor_table(config: DecoderConfig) -> list[TensorRule]:
    """Every tensor of a checkpoint."""
    return table(config, _delta)


def table(config: DecoderConfig, delta: llama.Rules) -> list[TensorRule]:
    """Every tensor of a checkpoint.

    Args:
        config: the decoder.
        delta: (config of a layer, its name, its path) -> the tensors of its gated delta net.
    """
    mixing = lambda own, source, path: (delta if own.mixer == "delta" else _attention)(own, source, path)
    return llama.tensor_table(config, _mixture, attending=mixing) + _predicted_tokens(config)


def _attention(config: DecoderConfig, source: str, path: str) -> list[TensorRule]:
    """Llama's, where each head of queries has its gate behind it, and the norms."""
    query, width = f"{source}.self_attn.q_proj", config.num_heads * config.head_dim
    table = [rule for rule in llama.attention(config, source, path) if not rule.source.startswith(query)]
    names = {"query": config.head_dim, "output_gate": config.head_dim}
    table += _by_head(query, f"{path}/attention", names, config.num_heads, config.model_dim)
    for number, name in enumerate(names) if config.qkv_bias else ():
        view = functools.partial(_bias_of_heads, heads=config.num_heads, start=number * config.head_dim)
        table.append(TensorRule(f"{query}.bias", f"{path}/attention/{name}/bias", (2 * width,), view, merged=(width,)))
    return table + qwen.norms(config, source, path)


def _by_head(source: str, path: str, widths: dict[str, int], heads: int, model: int) -> list[TensorRule]:
    """Kernels that are stored as one, head by head: of each head one part behind the other.

    Args:
        source: its name.
        path: of the module that they are of.
        widths: of the part of a head that each has.
        heads: how many there are.
        model: inputs.
    """
    total, start, rules = sum(widths.values()), 0, []
    for name, width in widths.items():
        view = functools.partial(_of_heads, heads=heads, start=start, stop=start + width)
        merged = (model, heads * width)
        rules.append(TensorRule(f"{source}.weight", f"{path}/{name}/kernel", (heads * total, model), view, merged))
        start += width
    return rules


def _of_heads(array: np.ndarray, heads: int, start: int, stop: int) -> np.ndarray:
    """[in, heads, part] of [heads * width, in]."""
    return np.moveaxis(array.reshape(heads, -1, array.shape[-1])[:, start:stop], 2, 0)


def _bias_of_heads(array: np.ndarray, heads: int, start: int) -> np.ndarray:
    by_head = array.reshape(heads, 2, -1)
    return by_head[:, 1 if start else 0]


def _delta(config: DecoderConfig, source: str, path: str) -> list[TensorRule]:
    """Of each key head the value heads that read it stand together."""
    heads, keys = config.delta_key_heads, config.delta_key_dim
    values = config.delta_value_width // heads
    mixed = {"query": keys, "key": keys, "value": values, "output_gate": values}
    group = config.delta_value_heads // heads
    parts = (f"{path}/delta", heads, config.model_dim)
    table = _by_head(f"{source}.linear_attn.in_proj_qkvz", parts[0], mixed, *parts[1:])
    table += _by_head(f"{source}.linear_attn.in_proj_ba", parts[0], {"beta": group, "decay": group}, *parts[1:])
    return table + around_delta(config, source, path)


def around_delta(config: DecoderConfig, source: str, path: str) -> list[TensorRule]:
    """What Qwen3-Next and Qwen 3.5 store alike."""
    source, path = f"{source}.linear_attn", f"{path}/delta"
    channels, heads = 2 * config.delta_key_width + config.delta_value_width, config.delta_value_heads
    return [
        TensorRule(f"{source}.conv1d.weight", f"{path}/conv", (channels, 1, config.delta_conv_width), _channels_last),
        TensorRule(f"{source}.A_log", f"{path}/a_log", (heads,)),
        TensorRule(f"{source}.dt_bias", f"{path}/dt_bias", (heads,)),
        *tables.norm(f"{source}.norm", f"{path}/norm", config.delta_value_dim),
        *tables.linear(f"{source}.out_proj", f"{path}/out", config.delta_value_width, config.model_dim),
    ]


def _channels_last(array: np.ndarray) -> np.ndarray:
    return array[:, 0].T


_NAMES = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}


def _mixture(config: DecoderConfig, source: str, path: str) -> list[TensorRule]:
    return llama.experts(config, f"{source}.mlp", f"{path}/experts", _NAMES) + _shared(config, source, path)


def _shared(config: DecoderConfig, source: str, path: str) -> list[TensorRule]:
    """The expert that every token takes, and its gate."""
    model, ffn, table = config.model_dim, config.shared_ffn_dim, []
    for theirs, ours in _NAMES.items():
        sizes = (ffn, model) if ours == "down" else (model, ffn)
        table += tables.linear(f"{source}.mlp.shared_expert.{theirs}", f"{path}/shared/{ours}", *sizes)
    return table + tables.linear(f"{source}.mlp.shared_expert_gate", f"{path}/shared_gate", model, 1)


def _predicted_tokens(config: DecoderConfig) -> list[TensorRule]:
    """A layer that predicts the token after the next one, which published files have and which is left aside."""
    source, width = "mtp.layers.0", config.model_dim
    feeding = _mixture if config.num_experts else llama.feed_forward
    shapes = {rule.source: rule.shape for rule in (*_attention(config, source, ""), *feeding(config, source, ""))}
    shapes |= {f"{source}.{name}.weight": (width,) for name in ("input_layernorm", "post_attention_layernorm")}
    shapes |= {f"mtp.{name}.weight": (width,) for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")}
    shapes["mtp.fc.weight"] = (width, 2 * width)
    reason = "it is of multi-token prediction, which is not implemented"
    return [TensorRule(name, None, shape, ignored=reason, required=False) for name, shape in shapes.items()]
