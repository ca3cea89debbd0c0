"""The architectures of GGUF files that can be read, and the configs of those that are plain decoders.

What all have in common is in `gguf_conventions`; Qwen3-Next and Qwen 3.5 are in `gguf_delta`, Gemma 4 in `gguf_gemma4`,
DeepSeek V3 and the GLMs in `gguf_routed`.
"""

from sft_jax.sources import gguf_delta, gguf_experts, gguf_gemma4, gguf_rope, gguf_routed
from sft_jax.sources.gguf_conventions import (
    ATTENTION,
    FOUR_NORMS,
    HEAD_NORMS,
    INSTEAD,
    KEYS,
    PROJECTIONS,
    TWO_NORMS,
    Architecture,
    has_bias,
    rope_fields,
    shared_config,
    stated_layer_types,
)
from sft_jax.sources.gguf_layouts import INTERLEAVED, minus_one
from sft_jax.sources.gguf_metadata import ModelMetadata
from sft_jax.sources.tensors import SourceError


def _llama(metadata: ModelMetadata) -> dict:
    shared = shared_config(metadata)
    return shared | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        **rope_fields(metadata, shared),
        "attention_bias": has_bias(metadata, "attn"),
        "mlp_bias": has_bias(metadata, "ffn"),
    }


def _qwen2(metadata: ModelMetadata) -> dict:
    """llama.cpp leaves out the sliding window, which no released model uses."""
    shared = shared_config(metadata)
    return shared | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        **rope_fields(metadata, shared),
        "use_sliding_window": False,
    }


def _qwen3(metadata: ModelMetadata) -> dict:
    qwen3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    return _qwen2(metadata) | qwen3 | {"attention_bias": has_bias(metadata, "attn")}


def _granite(metadata: ModelMetadata) -> dict:
    """Dense models of Granite 4 are written so too, with gate and up apart."""
    return _llama(metadata) | {
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
        "attention_multiplier": metadata.real("attention.scale"),
        "embedding_multiplier": metadata.real("embedding_scale"),
        "residual_multiplier": metadata.real("residual_scale"),
        "logits_scaling": metadata.real("logit_scale"),
    }


def _ministral3(metadata: ModelMetadata) -> dict:
    """The file has `mscale_all_dim`, to which `mscale` is equal in all models."""
    shared = shared_config(metadata)
    rope = rope_fields(metadata, shared)
    if (rope["rope_scaling"] or {}).get("rope_type") != "yarn":
        raise SourceError(
            f"{metadata.file.path}: {metadata.name('rope.scaling.type')} is {metadata.get('rope.scaling.type')!r}; "
            f"expected 'yarn'. {INSTEAD}"
        )
    scale = metadata.real("rope.scaling.yarn_log_multiplier")
    return shared | {
        "architectures": ["Ministral3ForCausalLM"],
        "model_type": "ministral3",
        "hidden_act": "silu",
        "rope_parameters": rope["rope_scaling"]
        | {
            "rope_theta": rope["rope_theta"],
            "mscale": scale,
            "mscale_all_dim": scale,
            "llama_4_scaling_beta": metadata.real("attention.temperature_scale"),
        },
    }


def _olmo2(metadata: ModelMetadata) -> dict:
    """A file with a window is of OLMo 3, of which layers without one alone have a scaling of rope."""
    shared = shared_config(metadata)
    rope = rope_fields(metadata, shared)
    scaling, factor = rope["rope_scaling"], "rope.scaling.yarn_attn_factor"
    if metadata.get(factor) is not None:  # what config.json has, although llama.cpp multiplies its default by it
        scaling = (scaling or {}) | {"attention_factor": metadata.real(factor)}
    common = shared | {"hidden_act": "silu", "attention_bias": has_bias(metadata, "attn")}
    if metadata.get("attention.sliding_window") is None:
        olmo2 = {"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2"}
        return common | olmo2 | {"rope_theta": rope["rope_theta"], "rope_scaling": scaling}
    theta = {"rope_theta": rope["rope_theta"]}
    return common | {
        "architectures": ["Olmo3ForCausalLM"],
        "model_type": "olmo3",
        "rope_parameters": {
            "full_attention": (scaling or {"rope_type": "default"}) | theta,
            "sliding_attention": {"rope_type": "default"} | theta,
        },
        "sliding_window": metadata.integer("attention.sliding_window"),
        "layer_types": stated_layer_types(metadata, shared["num_hidden_layers"]),
    }


def _phi3(metadata: ModelMetadata) -> dict:
    """A window of 0 is none."""
    shared = shared_config(metadata, partial_rope=True)
    rotated = metadata.integer("rope.dimension_count", shared["head_dim"])
    windowed = metadata.get("attention.sliding_window", 0) != 0
    return shared | {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_act": "silu",
        "original_max_position_embeddings": metadata.integer(
            "rope.scaling.original_context_length", shared["max_position_embeddings"]
        ),
        "partial_rotary_factor": rotated / shared["head_dim"],
        "rope_theta": metadata.real("rope.freq_base", 10000.0),
        "rope_scaling": gguf_rope.longrope(metadata),
        "sliding_window": metadata.integer("attention.sliding_window") if windowed else None,
    }


def _gemma2(metadata: ModelMetadata) -> dict:
    """Old files lack the window and the soft caps; Gemma 2 has one value of each in all sizes."""
    shared = shared_config(metadata)
    return shared | {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "hidden_activation": "gelu_pytorch_tanh",
        **rope_fields(metadata, shared),
        "attention_bias": False,
        "query_pre_attn_scalar": _query_scalar(metadata, shared, by_head=(26, 42), by_width=46),
        "sliding_window": metadata.integer("attention.sliding_window", 4096),
        "layer_types": _layer_types(shared["num_hidden_layers"], period=2),
        "attn_logit_softcapping": metadata.real("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": metadata.real("final_logit_softcapping", 30.0),
    }


def _gemma3(metadata: ModelMetadata) -> dict:
    """Old files lack the rotary base of layers with a window; Gemma 3 has one value in all sizes. The scaling of rope
    is for the others."""
    shared = shared_config(metadata)
    capped = metadata.get("final_logit_softcapping") is not None
    return shared | {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        **rope_fields(metadata, shared, theta=None),
        "rope_local_base_freq": metadata.real("rope.freq_base_swa", 10000.0),
        "attention_bias": False,
        "query_pre_attn_scalar": _query_scalar(metadata, shared, by_head=(18, 26, 34, 48), by_width=62),
        "sliding_window": metadata.integer("attention.sliding_window"),
        "layer_types": _layer_types(shared["num_hidden_layers"], period=6),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": metadata.real("final_logit_softcapping") if capped else None,
    }


def _gpt_oss(metadata: ModelMetadata) -> dict:
    """The file has neither the limit of gate and up nor how YaRN rounds, which all released models have alike."""
    shared = shared_config(metadata)
    rope = rope_fields(metadata, shared, theta=None)
    if (rope["rope_scaling"] or {}).get("rope_type") == "yarn":
        rope["rope_scaling"] |= {"truncate": False}
    return shared | {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "hidden_act": "silu",
        "intermediate_size": metadata.integer("expert_feed_forward_length", shared["intermediate_size"]),
        "num_local_experts": metadata.integer("expert_count"),
        "num_experts_per_tok": metadata.integer("expert_used_count"),
        **rope,
        "attention_bias": has_bias(metadata, "attn"),
        "sliding_window": metadata.integer("attention.sliding_window"),
        "layer_types": [
            "full_attention" if layer % 2 else "sliding_attention" for layer in range(shared["num_hidden_layers"])
        ],
    }


def _query_scalar(metadata: ModelMetadata, shared: dict, by_head: tuple[int, ...], by_width: int) -> int:
    """What queries are divided by the square root of: the head dimension, but hidden size / heads in the 27B models.

    The file does not hold it; llama.cpp too tells the sizes apart by their number of layers.
    """
    num_layers = shared["num_hidden_layers"]
    if num_layers in by_head:
        return shared["head_dim"]
    if num_layers == by_width:
        return shared["hidden_size"] // shared["num_attention_heads"]
    raise SourceError(
        f"{metadata.file.path}: {metadata.name('block_count')} is {num_layers}; a GGUF file does not hold the scale of "
        f"the queries (query_pre_attn_scalar), which is known for the released models of {metadata.architecture} with "
        f"{', '.join(map(str, by_head))} or {by_width} layers. Use the model's Hugging Face directory (safetensors) "
        "instead."
    )


def _layer_types(num_layers: int, period: int) -> list[str]:
    """All layers have the window but the last of each period."""
    return ["full_attention" if (layer + 1) % period == 0 else "sliding_attention" for layer in range(num_layers)]


_LLAMA = {
    "layer": TWO_NORMS | PROJECTIONS,
    "read_by_config": (gguf_rope.ROPE_FREQS,),
    "layouts": INTERLEAVED,
}
_FUSED = {
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
_AFTER_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_GEMMA_KEYS = KEYS | {"attention.sliding_window", "final_logit_softcapping"}
_CENTRED = dict.fromkeys(("output_norm", *FOUR_NORMS, *HEAD_NORMS), minus_one)

ARCHITECTURES = {
    "llama": Architecture(_llama, **_LLAMA),
    "mistral3": Architecture(
        _ministral3,
        keys=KEYS | {"attention.temperature_scale", "rope.scaling.yarn_log_multiplier"},
        **_LLAMA,
    ),
    "granite": Architecture(
        _granite, keys=KEYS | {"attention.scale", "embedding_scale", "residual_scale", "logit_scale"}, **_LLAMA
    ),
    "olmo2": Architecture(
        _olmo2,
        _AFTER_NORMS | HEAD_NORMS | PROJECTIONS,
        keys=KEYS | {"attention.sliding_window", "attention.sliding_window_pattern", "rope.scaling.yarn_attn_factor"},
    ),
    "phi3": Architecture(
        _phi3,
        TWO_NORMS | _FUSED,
        keys=KEYS | {"attention.sliding_window", "rope.scaling.attn_factor"},
        read_by_config=(gguf_rope.LONG_FACTORS, gguf_rope.SHORT_FACTORS),
    ),
    "gpt-oss": Architecture(
        _gpt_oss,
        {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}
        | ATTENTION
        | {"attn_sinks.weight": "self_attn.sinks", "ffn_gate_inp": "mlp.router"},
        keys=KEYS | {"attention.sliding_window", "expert_feed_forward_length"},
        composed=(gguf_experts.interleaved,),
    ),
    "qwen2": Architecture(_qwen2, TWO_NORMS | PROJECTIONS),
    "qwen3": Architecture(_qwen3, TWO_NORMS | HEAD_NORMS | PROJECTIONS),
    "gemma2": Architecture(
        _gemma2, FOUR_NORMS | PROJECTIONS, keys=_GEMMA_KEYS | {"attn_logit_softcapping"}, layouts=_CENTRED
    ),
    "gemma3": Architecture(
        _gemma3,
        FOUR_NORMS | HEAD_NORMS | PROJECTIONS,
        keys=_GEMMA_KEYS | {"rope.freq_base_swa"},
        layouts=_CENTRED,
    ),
    **gguf_delta.ARCHITECTURES,
    **gguf_gemma4.ARCHITECTURES,
    **gguf_routed.ARCHITECTURES,
}
