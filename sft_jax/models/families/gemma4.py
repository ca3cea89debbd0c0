"""Gemma 4 (`gemma4_text`, and `gemma4_unified_text` of 12B): windows in most layers, wider heads in those that see all
positions, whose values may be their keys; layers that read the keys and values of earlier ones; experts beside the
feed-forward layer; and a second embedding for each layer."""

import dataclasses
import reprlib
from typing import Any

from sft_jax.models.config import DecoderConfig
from sft_jax.models.families import llama, tables
from sft_jax.models.families.tables import ConfigReader, TensorRule

# Where a config does not say.
_PATTERN, _HEAD_DIM, _GLOBAL_HEAD_DIM, _PER_LAYER_DIM, _PER_LAYER_ROWS = 6, 256, 512, 256, 262_144
_WINDOW = {"gemma4_text": 512, "gemma4_unified_text": 1024}
_ROPES = {
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}
_BY_LAYER = {"head_dim": "head_dim", "num_key_value_heads": "num_kv_heads"}  # of `per_layer_config`


def decoder_config(hf_config: dict) -> DecoderConfig:
    """The decoder that a Hugging Face config describes.

    Raises:
        ValueError: a key is missing, or asks for something this port does not implement.
    """
    config = ConfigReader(hf_config if hf_config.get("rope_parameters") else hf_config | {"rope_parameters": _ROPES})
    config.expect("hidden_activation", "gelu_pytorch_tanh")
    config.expect("use_bidirectional_attention", False, "vision")  # text is read causally
    sizes, bias = tables.sizes(config, head_dim=_HEAD_DIM), config.get("attention_bias", False)
    layers = sizes["num_layers"]
    windows = _windows(config, hf_config["model_type"], layers)
    own = _global_layers(config, windows)
    _share_keys(config, windows, own, sizes["ffn_dim"])
    made = DecoderConfig(
        **sizes,
        **tables.ropes_by_layer_type(config, sizes["head_dim"], 1_000_000.0, 10_000.0),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        norm_placement="both",
        qk_norm="head",
        value_norm=True,
        query_scale=1.0,
        layer_scale=True,
        activation="gelu_tanh",
        tie_embeddings=config.get("tie_word_embeddings", True),
        embedding_scale=sizes["model_dim"] ** 0.5,
        final_softcap=config.get("final_logit_softcapping", 0.0),
        qkv_bias=bias,
        out_bias=bias,
        layer_windows=windows,
        layer_overrides=tuple(tuple(sorted(fields.items())) for fields in own) if any(own) else (),
        per_layer_dim=_per_layer_dim(config, hf_config["model_type"], sizes["vocab_size"]),
    )
    if config.get("enable_moe_block", False):
        made = dataclasses.replace(made, **_experts(config, made.ffn_dim))
    config.skip("num_experts", "top_k_experts", "moe_intermediate_size")
    config.finish()
    return made


def _windows(config: ConfigReader, kind: str, layers: int) -> tuple[int, ...]:
    """The last layer sees all positions: transformers changes a config that says something else, here it is refused."""
    slides = lambda layer: (layer + 1) % _PATTERN != 0 and layer != layers - 1
    windows = tables.windows(config, layers, slides, absent=_WINDOW[kind])
    if windows and windows[-1]:
        raise ValueError(
            "config.json has 'sliding_attention' as the last of its layer_types; expected 'full_attention', which "
            "transformers would make of it"
        )
    return windows or (0,) * layers


def _global_layers(config: ConfigReader, windows: tuple[int, ...]) -> list[dict[str, Any]]:
    """For each layer the fields in which it differs, where it has no window."""
    same = config.get("attention_k_eq_v", False)
    fields = {"head_dim": config.get("global_head_dim", _GLOBAL_HEAD_DIM)}
    heads = config.get("num_global_key_value_heads")
    if same:
        fields |= {"values_are_keys": True} | ({} if heads is None else {"num_kv_heads": heads})
    stated = config.get("per_layer_config")
    if stated is None:
        return [{} if window else dict(fields) for window in windows]
    own: list[dict[str, Any]] = [{"values_are_keys": True} if same and not window else {} for window in windows]
    for layer, given in ((str(layer), given) for layer, given in stated.items()):
        if (
            not layer.isdigit()
            or int(layer) >= len(windows)
            or not isinstance(given, dict)
            or set(given) - _BY_LAYER.keys()
        ):
            raise ValueError(
                f"config.json has per_layer_config={reprlib.repr(stated)}; implemented: {', '.join(_BY_LAYER)}, by the "
                f"number of a layer from 0 to {len(windows) - 1}"
            )
        reader = ConfigReader(given)
        own[int(layer)] |= {_BY_LAYER[name]: reader.require(name) for name in given}
    return own


def _share_keys(config: ConfigReader, windows: tuple[int, ...], own: list[dict[str, Any]], ffn_dim: int) -> None:
    """Notes in `own` which layers read the keys of an earlier one, and which give them."""
    shared, doubled = config.get("num_kv_shared_layers", 0), config.get("use_double_wide_mlp", False)
    first = len(windows) - shared
    if not shared:
        return
    for window in set(windows[first:]):
        givers = [layer for layer in range(first) if windows[layer] == window]
        if not givers:
            raise ValueError(
                f"config.json has num_kv_shared_layers={shared}; expected a layer of each of layer_types before these"
            )
        own[givers[-1]]["gives_keys"] = True
    for layer in range(first, len(windows)):
        own[layer] |= {"reads_keys": True} | ({"ffn_dim": 2 * ffn_dim} if doubled else {})
        own[layer].pop("values_are_keys", None)  # it has neither


def _per_layer_dim(config: ConfigReader, kind: str, vocab_size: int) -> int:
    """Width of the second embedding in each layer."""
    absent = _PER_LAYER_DIM if kind == "gemma4_text" else 0
    width = config.get_nullable("hidden_size_per_layer_input", absent) or 0
    rows = config.get("vocab_size_per_layer_input", _PER_LAYER_ROWS)
    if width and rows != vocab_size:
        raise ValueError(
            f"config.json has vocab_size_per_layer_input={rows} and vocab_size={vocab_size}; implemented: equal ones"
        )
    return width


def _experts(config: ConfigReader, dense: int) -> dict[str, Any]:
    config.expect("use_double_wide_mlp", False)  # beside experts it is not known to be anywhere
    return tables.experts(config, config.require("num_experts"), config.require("top_k_experts")) | {
        "ffn_dim": config.require("moe_intermediate_size"),
        "shared_ffn_dim": dense,
        "expert_norms": True,
        "router_scales": True,
    }


def tensor_table(config: DecoderConfig) -> list[TensorRule]:
    """Every tensor of a checkpoint."""
    embedding, shape = "model.embed_tokens.weight", (config.vocab_size, config.model_dim)
    table = [
        TensorRule(embedding, "embedding", shape),
        *tables.norm("model.norm", "final_norm", config.model_dim),
        tables.head("lm_head.weight", embedding, shape, config.tie_embeddings),
        *(_second_embedding(config) if config.per_layer_dim else []),
    ]
    for number in range(config.num_layers):
        table += _layer(config.of_layer(number), f"model.layers.{number}", f"layers_{number}")
    return table


def _second_embedding(config: DecoderConfig) -> list[TensorRule]:
    total = config.num_layers * config.per_layer_dim
    return [
        TensorRule("model.embed_tokens_per_layer.weight", "per_layer/embedding", (config.vocab_size, total)),
        *tables.linear("model.per_layer_model_projection", "per_layer/projection", config.model_dim, total),
        *tables.norm("model.per_layer_projection_norm", "per_layer/norm", config.per_layer_dim),
    ]


_NORMS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "attention_post_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "ffn_post_norm",
}


def _layer(config: DecoderConfig, source: str, path: str) -> list[TensorRule]:
    model, width = config.model_dim, config.per_layer_dim
    table = [TensorRule(f"{source}.layer_scalar", f"{path}/output_scale", (1,))]
    for theirs, ours in _NORMS.items():
        table += tables.norm(f"{source}.{theirs}", f"{path}/{ours}", model)
    if width:
        table += tables.linear(f"{source}.per_layer_input_gate", f"{path}/per_layer/gate", model, width)
        table += tables.linear(f"{source}.per_layer_projection", f"{path}/per_layer/out", width, model)
        table += tables.norm(f"{source}.post_per_layer_input_norm", f"{path}/per_layer/norm", model)
    table += _attention(config, source, path)
    return table + (_mixture if config.num_experts else llama.feed_forward)(config, source, path)


def _mixture(config: DecoderConfig, source: str, path: str) -> list[TensorRule]:
    """Router and experts, beside a feed-forward layer; each of the two with norms of its own."""
    model, ffn, count = config.model_dim, config.ffn_dim, config.num_experts
    shared = dataclasses.replace(config, ffn_dim=config.shared_ffn_dim)
    return [
        *(
            dataclasses.replace(rule, path=rule.path.replace("/ffn/", "/shared/"))
            for rule in llama.feed_forward(shared, source, path)
        ),
        *tables.norm(f"{source}.post_feedforward_layernorm_1", f"{path}/shared_post_norm", model),
        *tables.norm(f"{source}.pre_feedforward_layernorm_2", f"{path}/experts_norm", model),
        *tables.norm(f"{source}.post_feedforward_layernorm_2", f"{path}/experts_post_norm", model),
        *tables.linear(f"{source}.router.proj", f"{path}/experts/router", model, count),
        TensorRule(f"{source}.router.scale", f"{path}/experts/router_scale", (model,)),
        TensorRule(f"{source}.router.per_expert_scale", f"{path}/experts/expert_scale", (count,)),
        *tables.packed_experts(
            f"{source}.experts.gate_up_proj", [f"{path}/experts/gate", f"{path}/experts/up"], count, model, ffn
        ),
        *tables.packed_experts(f"{source}.experts.down_proj", [f"{path}/experts/down"], count, ffn, model),
    ]


def _attention(config: DecoderConfig, source: str, path: str) -> list[TensorRule]:
    """Four projections and two norms; without those of values where they are keys.

    Files have those of keys and values also in layers that read another's, where nothing uses them.
    """
    absent = ("v_proj",) if config.values_are_keys else ()
    unused = ("k_proj", "v_proj", "k_norm") if config.reads_keys else ()
    table = [
        *llama.attention(config, source, path),
        *tables.norm(f"{source}.self_attn.q_norm", f"{path}/attention/query_norm", config.head_dim),
        *tables.norm(f"{source}.self_attn.k_norm", f"{path}/attention/key_norm", config.head_dim),
    ]
    made = []
    for rule in table:
        module = rule.source.split(".")[-2]
        if module in unused:
            reason = "its layer reads the keys and values of an earlier one"
            made.append(TensorRule(rule.source, None, rule.shape, ignored=reason, required=False))
        elif module not in absent:
            made.append(rule)
    return made
