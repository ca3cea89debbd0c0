"""The architectures of GGUF files that can be read: keys, tensors, conventions and the config of each.

Values that a file leaves out are those that llama.cpp assumes: see conversion/ in its repository for what is written,
and src/models/ for what is assumed on reading.
"""

import dataclasses
import re
from collections.abc import Callable

from sft_jax.sources import gguf_rope
from sft_jax.sources.gguf_metadata import ModelMetadata
from sft_jax.sources.tensors import SourceError

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
    """

    config: Callable[[ModelMetadata, dict], dict]
    layer: dict[str, str]
    keys: frozenset[str] = _KEYS
    outer: dict[str, str] = dataclasses.field(default_factory=lambda: _OUTER)
    read_by_config: tuple[str, ...] = ()
    interleaved_rope: bool = False
    one_plus_norms: bool = False


def shared_config(metadata: ModelMetadata) -> dict:
    """The fields that all architectures spell alike. Defaults of absent keys are those of the GGUF specification.

    Raises:
      SourceError: metadata that is missing, or that contradicts itself or the tensors.
    """
    file = metadata.file
    num_heads, hidden_size = metadata.integer("attention.head_count"), metadata.integer("embedding_length")
    head_dim = metadata.integer("attention.key_length", hidden_size // num_heads)
    for key in ("attention.value_length", "rope.dimension_count"):
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


_GEMMA_KEYS = _KEYS | {"attention.sliding_window", "final_logit_softcapping"}

ARCHITECTURES = {
    "llama": Architecture(
        _llama, _TWO_NORMS | _PROJECTIONS, read_by_config=(gguf_rope.ROPE_FREQS,), interleaved_rope=True
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
