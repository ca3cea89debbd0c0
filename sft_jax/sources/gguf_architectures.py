"""The architectures of GGUF files that can be read: keys, tensors, conventions and the config of each.

Values that a file leaves out are those that llama.cpp assumes: see conversion/ in its repository for what is written,
and src/models/ for what is assumed on reading.
"""

import dataclasses
import re
from collections.abc import Callable

from sft_jax.sources import gguf_experts, gguf_rope
from sft_jax.sources.gguf_file import GgufFile
from sft_jax.sources.gguf_metadata import ModelMetadata
from sft_jax.sources.tensors import SourceError, TensorEntry

_KEYS = gguf_rope.KEYS | {
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "expert_count",
    "expert_used_count",
}
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_PROJECTIONS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TWO_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_FOUR_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How llama.cpp writes models of one architecture.

    Attributes:
      config: (metadata, the fields all architectures share) -> what config.json would say.
      keys: metadata of the model that is read; another key would mean a feature that the config does not tell of.
      outer: tensors outside the layers, GGUF name -> Hugging Face name, both without ".weight" and ".bias".
      layer: tensors of a layer, likewise, without "blk.N." and "model.layers.N.".
      read_by_config: tensors that are part of the config.
      interleaved_rope: the rows of the query and key projections are in llama.cpp's order.
      one_plus_norms: norms are stored as 1 + w.
      partial_rope: a part of each head may be rotated alone.
      bare: tensors whose Hugging Face name has no ".weight".
      experts: given the file, the tensors of experts by Hugging Face name; None: there are none in this architecture.
    """

    config: Callable[[ModelMetadata, dict], dict]
    layer: dict[str, str]
    keys: frozenset[str] = _KEYS
    outer: dict[str, str] = dataclasses.field(default_factory=lambda: _OUTER)
    read_by_config: tuple[str, ...] = ()
    interleaved_rope: bool = False
    one_plus_norms: bool = False
    partial_rope: bool = False
    bare: tuple[str, ...] = ()
    experts: Callable[[GgufFile], dict[str, TensorEntry]] | None = None


def shared_config(metadata: ModelMetadata, partial_rope: bool = False) -> dict:
    """The fields that all architectures spell alike. Defaults of absent keys are those of the GGUF specification.

    Args:
      metadata: of the model.
      partial_rope: `rope.dimension_count` may be less than the head dimension.

    Raises:
      SourceError: metadata that is missing, or that contradicts itself or the tensors.
    """
    file = metadata.file
    num_heads, hidden_size = metadata.integer("attention.head_count"), metadata.integer("embedding_length")
    head_dim = metadata.integer("attention.key_length", hidden_size // num_heads)
    for key in ("attention.value_length", *(() if partial_rope else ("rope.dimension_count",))):
        if metadata.integer(key, head_dim) != head_dim:
            raise SourceError(
                f"{file.path}: {metadata.name(key)} is {metadata.get(key)}; expected the head dimension {head_dim}."
            )
    return {
        "vocab_size": _vocab_size(metadata),
        "hidden_size": hidden_size,
        "intermediate_size": metadata.integer("feed_forward_length"),
        "num_hidden_layers": metadata.integer("block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": metadata.integer("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": metadata.integer("context_length"),
        "rms_norm_eps": metadata.real("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": file.checked("tokenizer.ggml.bos_token_id", "a whole number"),
        "eos_token_id": file.checked("tokenizer.ggml.eos_token_id", "a whole number"),
        "pad_token_id": file.checked("tokenizer.ggml.padding_token_id", "a whole number"),
        "dtype": "float32",
    }


def _vocab_size(metadata: ModelMetadata) -> int:
    file = metadata.file
    if "token_embd.weight" not in file.tensors:
        raise SourceError(f"{file.path}: has no tensor token_embd.weight: it is not a whole model.")
    rows = file.tensors["token_embd.weight"].shape[0]
    stated = metadata.integer("vocab_size", rows)
    if stated != rows:
        raise SourceError(
            f"{file.path}: {metadata.name('vocab_size')} is {stated}, but token_embd.weight has {rows} rows."
        )
    return rows


def _rope(metadata: ModelMetadata, shared: dict, theta: float | None = 10000.0) -> dict:
    """`rope_theta`, which must be there if `theta` is None, and `rope_scaling`."""
    theta = metadata.real("rope.freq_base", theta)
    return {"rope_theta": theta, "rope_scaling": gguf_rope.rope_scaling(metadata, shared["head_dim"], theta)}


def _has_bias(metadata: ModelMetadata, part: str) -> bool:
    return any(re.fullmatch(rf"blk\.\d+\.{part}_.*\.bias", name) for name in metadata.file.tensors)


def _llama(metadata: ModelMetadata, shared: dict) -> dict:
    return shared | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        **_rope(metadata, shared),
        "attention_bias": _has_bias(metadata, "attn"),
        "mlp_bias": _has_bias(metadata, "ffn"),
    }


def _qwen2(metadata: ModelMetadata, shared: dict) -> dict:
    """llama.cpp leaves out the sliding window, which no released model uses."""
    return shared | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        **_rope(metadata, shared),
        "use_sliding_window": False,
    }


def _qwen3(metadata: ModelMetadata, shared: dict) -> dict:
    qwen3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    return _qwen2(metadata, shared) | qwen3 | {"attention_bias": _has_bias(metadata, "attn")}


def _granite(metadata: ModelMetadata, shared: dict) -> dict:
    """Dense models of Granite 4 are written so too, with gate and up apart."""
    return _llama(metadata, shared) | {
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
        "attention_multiplier": metadata.real("attention.scale"),
        "embedding_multiplier": metadata.real("embedding_scale"),
        "residual_multiplier": metadata.real("residual_scale"),
        "logits_scaling": metadata.real("logit_scale"),
    }


def _ministral3(metadata: ModelMetadata, shared: dict) -> dict:
    """The file has `mscale_all_dim`, to which `mscale` is equal in all models."""
    rope = _rope(metadata, shared)
    if (rope["rope_scaling"] or {}).get("rope_type") != "yarn":
        raise SourceError(
            f"{metadata.file.path}: {metadata.name('rope.scaling.type')} is {metadata.get('rope.scaling.type')!r}; "
            "expected 'yarn'. Use the model's Hugging Face directory (safetensors) instead."
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


def _olmo2(metadata: ModelMetadata, shared: dict) -> dict:
    """A file with a window is of OLMo 3, of which layers without one alone have a scaling of rope."""
    rope = _rope(metadata, shared)
    scaling, factor = rope["rope_scaling"], "rope.scaling.yarn_attn_factor"
    if metadata.get(factor) is not None:  # what config.json has, although llama.cpp multiplies its default by it
        scaling = (scaling or {}) | {"attention_factor": metadata.real(factor)}
    common = shared | {"hidden_act": "silu", "attention_bias": _has_bias(metadata, "attn")}
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
        "layer_types": _stated_layer_types(metadata, shared["num_hidden_layers"]),
    }


def _stated_layer_types(metadata: ModelMetadata, num_layers: int) -> list[str]:
    key = "attention.sliding_window_pattern"
    stated = metadata.get(key)
    if not isinstance(stated, list) or len(stated) != num_layers or not all(isinstance(one, bool) for one in stated):
        raise SourceError(
            f"{metadata.file.path}: {metadata.name(key)} is {str(stated)[:60]}; expected true or false for each of "
            f"{num_layers} layers."
        )
    return ["sliding_attention" if slides else "full_attention" for slides in stated]


def _phi3(metadata: ModelMetadata, shared: dict) -> dict:
    """A window of 0 is none."""
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


def _gemma2(metadata: ModelMetadata, shared: dict) -> dict:
    """Old files lack the window and the soft caps; Gemma 2 has one value of each in all sizes."""
    return shared | {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "hidden_activation": "gelu_pytorch_tanh",
        **_rope(metadata, shared),
        "attention_bias": False,
        "query_pre_attn_scalar": _query_scalar(metadata, shared, by_head=(26, 42), by_width=46),
        "sliding_window": metadata.integer("attention.sliding_window", 4096),
        "layer_types": _layer_types(shared["num_hidden_layers"], period=2),
        "attn_logit_softcapping": metadata.real("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": metadata.real("final_logit_softcapping", 30.0),
    }


def _gemma3(metadata: ModelMetadata, shared: dict) -> dict:
    """Old files lack the rotary base of layers with a window; Gemma 3 has one value in all sizes. The scaling of rope
    is for the others."""
    capped = metadata.get("final_logit_softcapping") is not None
    return shared | {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        **_rope(metadata, shared, theta=None),
        "rope_local_base_freq": metadata.real("rope.freq_base_swa", 10000.0),
        "attention_bias": False,
        "query_pre_attn_scalar": _query_scalar(metadata, shared, by_head=(18, 26, 34, 48), by_width=62),
        "sliding_window": metadata.integer("attention.sliding_window"),
        "layer_types": _layer_types(shared["num_hidden_layers"], period=6),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": metadata.real("final_logit_softcapping") if capped else None,
    }


def _gpt_oss(metadata: ModelMetadata, shared: dict) -> dict:
    """The file has neither the limit of gate and up nor how YaRN rounds, which all released models have alike."""
    rope = _rope(metadata, shared, theta=None)
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
        "attention_bias": _has_bias(metadata, "attn"),
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


_LLAMA = {"layer": _TWO_NORMS | _PROJECTIONS, "read_by_config": (gguf_rope.ROPE_FREQS,), "interleaved_rope": True}
_FUSED = {
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
_AFTER_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_GEMMA_KEYS = _KEYS | {"attention.sliding_window", "final_logit_softcapping"}

ARCHITECTURES = {
    "llama": Architecture(_llama, **_LLAMA),
    "mistral3": Architecture(
        _ministral3,
        keys=_KEYS | {"attention.temperature_scale", "rope.scaling.yarn_log_multiplier"},
        **_LLAMA,
    ),
    "granite": Architecture(
        _granite, keys=_KEYS | {"attention.scale", "embedding_scale", "residual_scale", "logit_scale"}, **_LLAMA
    ),
    "olmo2": Architecture(
        _olmo2,
        _AFTER_NORMS | _HEAD_NORMS | _PROJECTIONS,
        keys=_KEYS | {"attention.sliding_window", "attention.sliding_window_pattern", "rope.scaling.yarn_attn_factor"},
    ),
    "phi3": Architecture(
        _phi3,
        _TWO_NORMS | _FUSED,
        keys=_KEYS | {"attention.sliding_window", "rope.scaling.attn_factor"},
        read_by_config=(gguf_rope.LONG_FACTORS, gguf_rope.SHORT_FACTORS),
        partial_rope=True,
    ),
    "gpt-oss": Architecture(
        _gpt_oss,
        {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}
        | {part: name for part, name in _PROJECTIONS.items() if part.startswith("attn")}
        | {"attn_sinks": "self_attn.sinks", "ffn_gate_inp": "mlp.router"},
        keys=_KEYS | {"attention.sliding_window", "expert_feed_forward_length"},
        bare=("attn_sinks",),
        experts=gguf_experts.interleaved,
    ),
    "qwen2": Architecture(_qwen2, _TWO_NORMS | _PROJECTIONS),
    "qwen3": Architecture(_qwen3, _TWO_NORMS | _HEAD_NORMS | _PROJECTIONS),
    "gemma2": Architecture(
        _gemma2, _FOUR_NORMS | _PROJECTIONS, keys=_GEMMA_KEYS | {"attn_logit_softcapping"}, one_plus_norms=True
    ),
    "gemma3": Architecture(
        _gemma3,
        _FOUR_NORMS | _HEAD_NORMS | _PROJECTIONS,
        keys=_GEMMA_KEYS | {"rope.freq_base_swa"},
        one_plus_norms=True,
    ),
}
