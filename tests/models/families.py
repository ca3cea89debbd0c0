"""The families under test: for each a tiny random torch model, and the features that must not go missing unnoticed.

A switch is (name, edit): `edit(config, params)` returns both with one feature off. Each must move the logits by a
hundred tolerances, or the parity test would pass without the feature.
"""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import torch
import transformers

from sft_jax.models.config import DecoderConfig
from sft_jax.models.loading import decoder_config
from sft_jax.models.rope import of_length
from sft_jax.sources import PretrainedCheckpoint
from sft_jax.sources.wrappers import WRAPPERS, unwrapped
from tests.models import reference

Edit = Callable[[DecoderConfig, dict], tuple[DecoderConfig, dict]]

SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 5  # far shorter than the sequences of the tests


def changed(**fields: object) -> Edit:
    return lambda config, params: (dataclasses.replace(config, **fields), params)


def without(suffix: str, value: float) -> Edit:
    return lambda config, params: (config, reference.edited(params, suffix, lambda x: jnp.full_like(x, value)))


def without_qk_norm(config, params):
    def edit(tree):
        return {
            name: edit(leaf) if isinstance(leaf, dict) else leaf for name, leaf in tree.items() if "y_norm" not in name
        }

    return dataclasses.replace(config, qk_norm="none"), edit(params)


def without_positions(config, params):
    return config, reference.edited(params, "position_embedding/embedding", jnp.zeros_like)


def sequential(config, params):
    """Parallel residual off: the feed-forward layer reads what attention has added."""
    return dataclasses.replace(config, norm_placement="pre"), params


def all_layers_rotate(config, params):
    assert False in config.rope_layers
    return dataclasses.replace(config, rope_layers=()), params


def without_attention_factor(config, params):
    scaling = dataclasses.replace(config.rope_scaling, attention_factor=1.0)
    return dataclasses.replace(config, rope_scaling=scaling), params


def with_truncated_scaling(config, params):
    return dataclasses.replace(config, rope_scaling=dataclasses.replace(config.rope_scaling, truncate=True)), params


def wholly_rotated(config, params):
    """All of a head, with another factor."""
    longer = lambda factors: (*factors, factors[-1])
    scaling = config.rope_scaling
    scaling = dataclasses.replace(
        scaling, short_factors=longer(scaling.short_factors), long_factors=longer(scaling.long_factors)
    )
    return dataclasses.replace(config, rope_dim=0, rope_scaling=scaling), params


def wider_window(config, params):
    """Windows beyond every text; which layers have one says still who shares keys with whom."""
    return dataclasses.replace(config, layer_windows=tuple(window and 1000 for window in config.layer_windows)), params


def own_keys_again(config, params):
    """Layers that read keys have some of their own: those that they would have with the weights of their source."""
    givers = {}
    made, overrides = dict(params), list(config.layer_overrides)
    for number in range(config.num_layers):
        layer = config.of_layer(number)
        if layer.gives_keys:
            givers[layer.window] = params[f"layers_{number}"]["attention"]
        if layer.reads_keys:
            own, source = dict(params[f"layers_{number}"]), givers[layer.window]
            own["attention"] = {name: source[name] for name in ("key", "value", "key_norm")} | own["attention"]
            made[f"layers_{number}"] = own
            overrides[number] = tuple(pair for pair in overrides[number] if pair[0] != "reads_keys")
    assert givers
    return dataclasses.replace(config, layer_overrides=tuple(overrides)), made


def for_texts_of(tokens: int) -> Edit:
    """The rotary frequencies of texts of another length."""
    return lambda config, params: (of_length(config, tokens), params)


def with_the_norm_of_heads_centred(config, params):
    """1 + w in place of w, in the norm behind the delta rule."""
    return config, reference.edited(params, "delta/norm/scale", lambda scale: 1 + scale)


def without_gate(name: str) -> Edit:
    """sigmoid(0) is a half, everywhere."""
    return without(f"{name}/kernel", 0.0)


NO_WINDOW = {
    "window": changed(layer_windows=()),
    "window of one more": lambda c, p: (
        dataclasses.replace(c, layer_windows=tuple(w and w + 1 for w in c.layer_windows)),
        p,
    ),
}
QKV_BIAS = {f"bias of {name}": without(f"attention/{name}/bias", 0.0) for name in ("query", "key", "value")}
# Where nothing is rotated, a bias of the keys adds the same number to all scores of a query: it changes nothing.
QUERY_VALUE_BIAS = {name: edit for name, edit in QKV_BIAS.items() if "key" not in name}
OTHER_BIAS = {f"bias of {name}": without(f"{name}/bias", 0.0) for name in ("attention/out", "ffn/up", "ffn/down")}
LAYER_NORM = {
    "mean of the norm": changed(norm="rms"),
    **{f"bias of {name}": without(f"{name}/bias", 0.0) for name in ("attention_norm", "ffn_norm", "final_norm")},
}
FOUR_NORMS = {
    f"scale of {name}": without(f"{name}/scale", 0.0)
    for name in ("attention_norm", "attention_post_norm", "ffn_norm", "ffn_post_norm", "final_norm")
}
GEMMA = {
    **FOUR_NORMS,
    "1 + w": changed(norm_offset=0.0),
    "embedding scale": changed(embedding_scale=1.0),
    "query scale": changed(query_scale=0.0),
    "tanh of gelu": changed(activation="silu"),
    **NO_WINDOW,
}
EXPERTS = {
    "router": without("router/kernel", 0.0),
    "experts": without("down/kernel", 0.0),
    "bound": changed(expert_capacity=0.5),
}
ROUTER = {
    "correction of the choice": without("correction_bias", 0.0),
    "sigmoids": changed(router_scoring="softmax"),
    "factor on the weights": changed(expert_weight_scale=1.0),
    "weights that sum to 1": changed(normalize_expert_weights=False),
    "what every token takes": without("shared/down/kernel", 0.0),
    "experts a token takes": changed(experts_per_token=1),
}
LATENT = {
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "num_key_value_heads": 4,
}
LATENT_SWITCHES = {
    "scale of the latent keys' norm": without("key_value_a_norm/scale", 1.0),
    "pairs side by side": changed(rope_interleaved=False),
}
EXPERT_BIAS = {f"bias of {name}": without(f"experts/{name}/bias", 0.0) for name in ("router", "gate", "up", "down")}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
GRANITE = {
    "attention_multiplier": 0.2,
    "embedding_multiplier": 3.0,
    "logits_scaling": 1.5,
    "residual_multiplier": 0.6,
}
GRANITE_FACTORS = {
    "factor on embeddings": changed(embedding_scale=1.0),
    "factor on scores": changed(query_scale=0.0),
    "factor on residuals": changed(residual_scale=1.0),
    "factor on logits": changed(logit_scale=1.0),
}
LONGROPE = {
    "model_type": "phi3",
    "partial_rotary_factor": 0.75,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.5, 2.0], "long_factor": [1.5, 4.0, 9.0]},
}

GEMMA3 = {
    "num_hidden_layers": 4,
    "head_dim": 16,
    "sliding_window": WINDOW,
    "query_pre_attn_scalar": 24,
    "sliding_window_pattern": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    },
}
GEMMA3_SWITCHES = GEMMA | {
    "qk norm": without_qk_norm,
    "base of windowed layers": changed(local_rope_theta=500000.0),
    "scaling": changed(rope_scaling=None),
}
GEMMA4 = {
    "model_type": "gemma4_text",
    "num_hidden_layers": 4,
    "head_dim": 8,
    "global_head_dim": 16,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 500.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    },
    "final_logit_softcapping": 3.0,
    "hidden_size_per_layer_input": 0,
}
SAME_KEYS = {"attention_k_eq_v": True, "num_global_key_value_heads": 1}
GEMMA4_UNIFIED = {
    **{name: value for name, value in GEMMA4.items() if name != "hidden_size_per_layer_input"},
    **SAME_KEYS,
    "model_type": "gemma4_unified_text",
}
GEMMA4_MOE = (
    GEMMA4 | SAME_KEYS | {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 3, "moe_intermediate_size": 24}
)
GEMMA4_SHARED = GEMMA4 | {
    "num_hidden_layers": 9,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 3,
    "hidden_size_per_layer_input": 12,
    "vocab_size_per_layer_input": 320,
    "num_kv_shared_layers": 4,
    "use_double_wide_mlp": True,
}
GEMMA4_SHARED_SMALL = GEMMA4_SHARED | {  # that it trains is seen of this one
    "num_hidden_layers": 4,
    "layer_types": GEMMA4["layer_types"],
    "num_kv_shared_layers": 2,
}
GEMMA4_SWITCHES = {
    **FOUR_NORMS,
    **{name: edit for name, edit in GEMMA.items() if name in ("embedding scale", "query scale", "tanh of gelu")},
    **NO_WINDOW,
    "qk norm": without_qk_norm,
    "scale of the key norm": without("key_norm/scale", 1.0),
    "norm of values": changed(value_norm=False),
    "scale of a layer": without("output_scale", 1.0),
    "cap of logits": changed(final_softcap=0.0),
    "base of windowed layers": changed(local_rope_theta=500.0),
    "pairs that do not rotate": changed(rope_scaling=None),
}
GEMMA4_EXPERTS = {
    "router": without("router/kernel", 0.0),
    "experts": without("experts/down/kernel", 0.0),
    "what every token takes": without("shared/down/kernel", 0.0),
    "bound": changed(expert_capacity=0.5),
    "experts a token takes": changed(
        experts_per_token=1
    ),  # that their weights sum to 1 is lost in the norm behind them
    "scale of what the router reads": without("router_scale", 1.0),
    "factor of each expert": without("expert_scale", 1.0),
    **{
        f"scale of {name}": without(f"{name}/scale", 1.0)
        for name in ("experts_norm", "experts_post_norm", "shared_post_norm")
    },
}
SHARED_SWITCHES = {
    "window": wider_window,
    "keys of another layer": own_keys_again,
    "second embedding": without("layer/embedding", 0.0),
    "projection to the second embedding": without("layer/projection/kernel", 0.0),
    "norm of that": without("per_layer/norm/scale", 0.0),
    "second embedding in layers": changed(per_layer_dim=0),
}
MINISTRAL3 = {
    "model_type": "ministral3",
    "head_dim": 16,
    "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.5},
}
MINISTRAL3_SWITCHES = {
    "scaling": changed(rope_scaling=None),
    "growth of queries": changed(query_growth=0.0),
    "positions of the growth": changed(query_growth_positions=8),
}
ROUTED = {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "num_hidden_layers": 3}
GLM4_MOE = ROUTED | {
    "model_type": "glm4_moe",
    "head_dim": 16,
    "attention_bias": True,
    "routed_scaling_factor": 2.5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
}
DELTA = {
    "rms_norm_eps": 0.02,
    "num_hidden_layers": 4,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
}
OF_DELTA = {
    "moe_intermediate_size": 24,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "shared_expert_intermediate_size": 20,
}
TWO_LAYERS = {"num_hidden_layers": 2, "full_attention_interval": 2}
DELTA_SWITCHES = {
    "convolution": lambda c, p: (c, reference.edited(p, "delta/conv", lambda x: x.at[..., :-1, :].set(0.0))),
    "decay": without("delta/decay/kernel", 0.0),
    "rate of decay": without("delta/a_log", 0.0),
    "bias of decay": without("delta/dt_bias", 0.0),
    "beta": without("delta/beta/kernel", 0.0),
    "output gate of the delta net": without_gate("delta/output_gate"),
    "scale of the norm of heads": without("delta/norm/scale", 1.0),
    "centre of the norm of heads": with_the_norm_of_heads_centred,
    "output gate of attention": without_gate("attention/output_gate"),
    "1 + w": changed(norm_offset=0.0),
    "qk norm": without_qk_norm,
    "rotated part": changed(rope_dim=0),
}
SHARED_EXPERT_SWITCHES = {
    "gate of the shared expert": without_gate("shared_gate"),
    "shared": without("shared/down/kernel", 0.0),
}
VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

# name -> (fields of config.json, switches)
CASES: dict[str, tuple[dict, dict[str, Edit]]] = {
    "llama": ({"model_type": "llama"}, {"rope": changed(rope_theta=1e12)}),
    "llama linear rope": (
        {"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 4.0}, "rope_theta": 10000.0},
        {"scaling": changed(rope_scaling=None)},
    ),
    "llama dynamic rope": (
        {"model_type": "llama", "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}, "rope_theta": 10000.0},
        {"rope": changed(rope_theta=1e12)},
    ),
    "llama yarn": (
        {"model_type": "llama", "rope_scaling": YARN},
        {
            "scaling": changed(rope_scaling=None),
            "attention factor": without_attention_factor,
        },
    ),
    "smollm3": (
        {"model_type": "smollm3", "num_hidden_layers": 4, "no_rope_layer_interval": 2, "tie_word_embeddings": True},
        {"layers without rope": all_layers_rotate},
    ),
    "mistral": ({"model_type": "mistral", "sliding_window": WINDOW}, NO_WINDOW),
    "qwen2": ({"model_type": "qwen2"}, QKV_BIAS),
    "qwen2 with windows": (
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        NO_WINDOW,
    ),
    "qwen3": (
        {"model_type": "qwen3", "head_dim": 16},
        {
            "qk norm": without_qk_norm,
            "scale of the query norm": without("query_norm/scale", 1.0),
            "scale of the key norm": without("key_norm/scale", 1.0),
        },
    ),
    "gemma2": (
        {
            "model_type": "gemma2",
            "head_dim": 16,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
        GEMMA | {"cap of scores": changed(attention_softcap=0.0), "cap of logits": changed(final_softcap=0.0)},
    ),
    "gemma3_text": ({"model_type": "gemma3_text"} | GEMMA3, GEMMA3_SWITCHES),
    "gemma3 wrapper": (
        {
            "model_type": "gemma3",
            "text_config": {"model_type": "gemma3_text"} | GEMMA3,
            "vision_config": {"model_type": "siglip_vision_model"} | TOWER,
            "mm_tokens_per_image": 4,
        },
        GEMMA3_SWITCHES,
    ),
    "gemma4_text": (GEMMA4 | SAME_KEYS, GEMMA4_SWITCHES),
    "gemma4 wrapper": (
        {
            "model_type": "gemma4",
            "text_config": GEMMA4_SHARED_SMALL,
            "vision_config": {
                "model_type": "gemma4_vision",
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "patch_size": 4,
                "position_embedding_size": 16,
            },
            "audio_config": None,
        },
        {"keys of another layer": own_keys_again, "second embedding in layers": changed(per_layer_dim=0)},
    ),
    "gemma4_unified wrapper": (
        {
            "model_type": "gemma4_unified",
            "text_config": GEMMA4_UNIFIED,
            "vision_config": {"model_type": "gemma4_unified_vision", "mm_embed_dim": 32, "mm_posemb_size": 16},
            "audio_config": None,
        },
        GEMMA4_SWITCHES,
    ),
    "gemma4_unified_text": (GEMMA4_UNIFIED, GEMMA4_SWITCHES),
    "gemma4_text with experts": (GEMMA4_MOE, GEMMA4_SWITCHES | GEMMA4_EXPERTS),
    "gemma4_text with shared keys": (GEMMA4_SHARED, GEMMA4_SWITCHES | SHARED_SWITCHES),
    "mistral3 wrapper": (
        {
            "model_type": "mistral3",
            "text_config": {"model_type": "mistral", "head_dim": 16, "sliding_window": WINDOW},
            "vision_config": {"model_type": "pixtral", "head_dim": 8} | TOWER,
            "tie_word_embeddings": False,
        },
        NO_WINDOW | {"rope": changed(rope_theta=1e12)},
    ),
    "mistral3 wrapper of ministral3": (
        {
            "model_type": "mistral3",
            "text_config": MINISTRAL3,
            "vision_config": {"model_type": "pixtral", "head_dim": 8} | TOWER,
            "tie_word_embeddings": False,
        },
        MINISTRAL3_SWITCHES,
    ),
    "ministral3": (MINISTRAL3, MINISTRAL3_SWITCHES),
    "granite": (
        GRANITE | {"model_type": "granite", "attention_bias": True, "mlp_bias": True},
        GRANITE_FACTORS | QKV_BIAS | OTHER_BIAS,
    ),
    "granitemoehybrid": (
        GRANITE
        | {
            "model_type": "granitemoehybrid",
            "layer_types": ["attention"] * 2,
            "mamba_n_heads": 8,
            "num_local_experts": 0,
            "position_embedding_type": "rope",
            "shared_intermediate_size": 40,
            "tie_word_embeddings": True,
        },
        GRANITE_FACTORS | {"rope": changed(rope_theta=1e12)},
    ),
    "phi3": ({"model_type": "phi3", "sliding_window": WINDOW}, NO_WINDOW),
    "phi3 partial": (
        {
            "model_type": "phi3",
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        },
        {"rotated part": changed(rope_dim=0)},
    ),
    "phi3 short texts": (  # each text is short, and two in a row are not
        LONGROPE | {"original_max_position_embeddings": 30},
        {
            "scaling": changed(rope_scaling=None),
            "short factors": for_texts_of(31),
            "attention factor": without_attention_factor,
        },
    ),
    "phi3 long texts": (
        LONGROPE | {"original_max_position_embeddings": 10, "tie_word_embeddings": True},
        {
            "scaling": changed(rope_scaling=None),
            "long factors": for_texts_of(10),
            "attention factor": without_attention_factor,
            "rotated part": wholly_rotated,
        },
    ),
    "mixtral": (
        {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
        EXPERTS | {"experts a token takes": changed(experts_per_token=1)},
    ),
    "qwen3_moe": (
        {
            "model_type": "qwen3_moe",
            "head_dim": 16,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
        },
        EXPERTS | {"qk norm": without_qk_norm, "weights that do not sum to 1": changed(normalize_expert_weights=True)},
    ),
    "qwen3_moe normalised": (
        {
            "model_type": "qwen3_moe",
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
        },
        NO_WINDOW | {"weights that sum to 1": changed(normalize_expert_weights=False)},
    ),
    "olmo2": (
        {"model_type": "olmo2"},
        {
            "qk norm": without_qk_norm,
            **{
                f"scale of {n}": without(f"{n}/scale", 0.5)
                for n in ("attention_post_norm", "ffn_post_norm", "query_norm")
            },
        },
    ),
    "olmo3": (
        {
            "model_type": "olmo3",
            "num_hidden_layers": 4,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": {"full_attention": YARN, "sliding_attention": {"rope_theta": 100.0}},
        },
        {
            "qk norm": without_qk_norm,
            "scaling": changed(rope_scaling=None),
            "attention factor": without_attention_factor,
            "scaling of windowed layers": changed(local_rope_theta=0.0),
            "base of windowed layers": changed(local_rope_theta=10000.0),
            **NO_WINDOW,
        },
    ),
    "gpt2": (
        {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
        LAYER_NORM
        | QUERY_VALUE_BIAS
        | OTHER_BIAS
        | {"positions": without_positions, "tanh of gelu": changed(activation="silu")},
    ),
    "gpt_neox": (
        {"model_type": "gpt_neox", "rotary_pct": 0.5},
        LAYER_NORM
        | QKV_BIAS
        | OTHER_BIAS
        | {"rotated part": changed(rope_dim=0), "parallel residual": sequential, "gelu": changed(activation="silu")},
    ),
    "gpt_oss": (
        {
            "model_type": "gpt_oss",
            "head_dim": 16,
            "num_hidden_layers": 4,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": WINDOW,
            "swiglu_limit": 1.5,
            "rope_parameters": YARN | {"truncate": False, "rope_theta": 100.0, "original_max_position_embeddings": 50},
        },
        EXPERTS
        | EXPERT_BIAS
        | QKV_BIAS
        | NO_WINDOW
        | {
            "sinks": without("attention/sinks", -1e9),
            "bias of out": OTHER_BIAS["bias of attention/out"],
            "scaling": changed(rope_scaling=None),
            "attention factor": without_attention_factor,
            "whole pairs of the scaling": with_truncated_scaling,
            "limit of gate and up": changed(ffn_clamp=0.0),
            "up + 1": changed(up_offset=0.0),
            "slope of the gate": changed(activation="silu"),
            "experts a token takes": changed(experts_per_token=1),
        },
    ),
    "deepseek_v3": (
        LATENT
        | ROUTED
        | {
            "model_type": "deepseek_v3",
            "rms_norm_eps": 0.02,
            "first_k_dense_replace": 1,
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 2.5,
            "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.8, "rope_theta": 100.0},
        },
        EXPERTS
        | ROUTER
        | LATENT_SWITCHES
        | {
            "scale of the latent queries' norm": without("query_a_norm/scale", 1.0),
            "groups": changed(expert_groups_taken=4),
            "scaling": changed(rope_scaling=None),
            "attention factor": without_attention_factor,
            "factor on scores": changed(query_scale=0.0),
        },
    ),
    "deepseek_v3 plain": (
        LATENT
        | ROUTED
        | {
            "model_type": "deepseek_v3",
            "num_hidden_layers": 2,
            "first_k_dense_replace": 0,
            "q_lora_rank": None,
            "rope_interleave": False,
            "attention_bias": True,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 2,
        },
        ROUTER
        | {
            "bias of key_value_a": without("key_value_a/bias", 0.0),
            "bias of out": OTHER_BIAS["bias of attention/out"],
            "pairs half a head apart": changed(rope_interleaved=True),
        },
    ),
    "glm4_moe": (
        GLM4_MOE | {"use_qk_norm": True},
        EXPERTS | ROUTER | QKV_BIAS | {"qk norm": without_qk_norm, "rotated part": changed(rope_dim=0)},
    ),
    "glm4_moe without norms": (GLM4_MOE | {"first_k_dense_replace": 2}, QKV_BIAS),
    "glm4_moe_lite": (
        LATENT | ROUTED | {"model_type": "glm4_moe_lite", "v_head_dim": 24, "routed_scaling_factor": 1.8},
        EXPERTS | ROUTER | LATENT_SWITCHES | {"rope": changed(rope_theta=1e12)},
    ),
    "qwen3_next": (
        DELTA | OF_DELTA | TWO_LAYERS | {"model_type": "qwen3_next"},
        EXPERTS
        | DELTA_SWITCHES
        | SHARED_EXPERT_SWITCHES
        | {"weights that sum to 1": changed(normalize_expert_weights=False)},
    ),
    "qwen3_next biases": (
        DELTA
        | OF_DELTA
        | {
            "model_type": "qwen3_next",
            "attention_bias": True,
            "norm_topk_prob": False,
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "linear_attention", "full_attention"],
        },
        QKV_BIAS
        | {
            "bias of the output gate": without("output_gate/bias", 0.0),
            "bias of out": OTHER_BIAS["bias of attention/out"],
            "weights that do not sum to 1": changed(normalize_expert_weights=True),
        },
    ),
    "qwen3_5_text": (
        DELTA | {"model_type": "qwen3_5_text", "tie_word_embeddings": True, "full_attention_interval": 2},
        DELTA_SWITCHES,
    ),
    "qwen3_5_moe_text": (
        DELTA | OF_DELTA | TWO_LAYERS | {"model_type": "qwen3_5_moe_text"},
        EXPERTS | DELTA_SWITCHES | SHARED_EXPERT_SWITCHES,
    ),
    "qwen3_5 wrapper": (
        {
            "model_type": "qwen3_5",
            "text_config": DELTA | {"model_type": "qwen3_5_text"},
            "vision_config": {"model_type": "qwen3_5_vision"} | VISION,
        },
        DELTA_SWITCHES,
    ),
    "qwen3_5_moe wrapper": (
        {
            "model_type": "qwen3_5_moe",
            "text_config": DELTA | OF_DELTA | TWO_LAYERS | {"model_type": "qwen3_5_moe_text"},
            "vision_config": {"model_type": "qwen3_5_moe_vision"} | VISION,
        },
        DELTA_SWITCHES | SHARED_EXPERT_SWITCHES,
    ),
    "gpt_neox sequential": (
        {"model_type": "gpt_neox", "use_parallel_residual": False},
        {"bias of out": OTHER_BIAS["bias of attention/out"]},
    ),
}


def hf_config(case: str) -> dict:
    fields = copy.deepcopy(CASES[case][0])
    if fields["model_type"] in WRAPPERS:
        return fields | {"text_config": SIZES | fields["text_config"]}
    return ({"vocab_size": 320} if fields["model_type"] == "gpt2" else SIZES) | fields


def text_config(case: str) -> dict:
    """What a family reads of a case's config."""
    return unwrapped(hf_config(case), {}, case)[0]


def decoder(case: str) -> DecoderConfig:
    """What a family makes of it."""
    return decoder_config(PretrainedCheckpoint("made", "made", text_config(case), {}, ""))


def torch_model(case: str, seed: int = 0) -> transformers.PreTrainedModel:
    """The torch model of a case, see `random_model`."""
    fields = hf_config(case)
    return random_model(transformers.AutoConfig.for_model(fields.pop("model_type"), **fields), seed)


def random_model(config: transformers.PreTrainedConfig, seed: int = 0) -> transformers.PreTrainedModel:
    """A torch model with every parameter far from its initial value."""
    auto = "AutoModelForImageTextToText" if config.model_type in WRAPPERS else "AutoModelForCausalLM"
    model = getattr(transformers, auto).from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    centred = config.model_type.startswith(("gemma2", "gemma3", "qwen3_next", "qwen3_5"))  # norms scale by 1 + w
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1 and name.endswith("weight"):
                around = 0.0 if centred and "linear_attn.norm" not in name else 1.0
                parameter.copy_(around + 0.3 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.5 * noise)
            elif "wpe" in name or "wte" in name or "embed" in name:
                parameter.copy_(0.35 * noise)
            else:
                fan_in = parameter.shape[0] if config.model_type == "gpt2" and ".c_" in name else parameter.shape[-1]
                parameter.copy_(2.0 * fan_in**-0.5 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            if name.endswith("layer_scalar"):
                buffer.copy_(1.0 + 0.3 * torch.randn(buffer.shape, generator=generator))
    return model


def save(model: transformers.PreTrainedModel, directory: Path) -> Path:
    model.save_pretrained(directory)
    return directory


def torch_logits(model: transformers.PreTrainedModel, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(ids).long(), use_cache=False).logits.float().numpy()
