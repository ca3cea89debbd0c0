"""Gemma 4 (`gemma4`) in GGUF files.

Norms are stored as they are, unlike those of the Gemmas before. Widths and heads of layers without a window stand
under the usual keys and those of layers with one under `*_swa`, or in lists with an entry a layer (conversion/gemma.py
of llama.cpp). That values are keys is told by the tensors alone.
"""

from sft_jax.sources import gguf_experts, gguf_rope
from sft_jax.sources.gguf_conventions import (
    FOUR_NORMS,
    HEAD_NORMS,
    KEYS,
    OUTER,
    PROJECTIONS,
    Architecture,
    expect,
    has_bias,
    num_layers,
    shared_config,
    stated_layer_types,
)
from sft_jax.sources.gguf_metadata import ModelMetadata
from sft_jax.sources.tensors import SourceError

_FULL = "full_attention"
_SECOND_EMBEDDING = "per_layer_token_embd.weight"


def _gemma4(metadata: ModelMetadata) -> dict:
    """That of 12B, which is not told apart, computes what the others do."""
    layers, whole = num_layers(metadata), metadata.integer("attention.key_length")
    kinds, head_dim = stated_layer_types(metadata, layers), metadata.integer("attention.key_length_swa")
    expect(metadata, "attention.value_length", whole, "the head dimension of layers without a window")
    expect(metadata, "rope.dimension_count", whole, "the head dimension of layers without a window")
    for key in ("attention.value_length_swa", "rope.dimension_count_swa"):
        expect(metadata, key, head_dim, "the head dimension of layers with a window")
    heads = metadata.integers("attention.head_count_kv", layers, metadata.integer("attention.head_count"))
    shared_layers = metadata.integer("attention.shared_kv_layers", 0, smallest=0)
    widths = _feed_forward(metadata, layers - shared_layers)
    shared = shared_config(
        metadata,
        intermediate_size=widths["intermediate_size"],
        num_key_value_heads=_heads_of(metadata, heads, kinds, "sliding_attention"),
        head_dim=head_dim,
    )
    capped = metadata.get("final_logit_softcapping") is not None
    return shared | {
        "architectures": ["Gemma4ForCausalLM"],
        "model_type": "gemma4_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "global_head_dim": whole,
        "num_global_key_value_heads": _heads_of(metadata, heads, kinds, _FULL),
        "attention_k_eq_v": _values_are_keys(metadata, kinds[: layers - shared_layers]),
        "num_kv_shared_layers": shared_layers,
        "use_double_wide_mlp": widths["use_double_wide_mlp"],
        "layer_types": kinds,
        "sliding_window": metadata.integer("attention.sliding_window"),
        "rope_parameters": {
            _FULL: gguf_rope.proportional(metadata, whole) | {"rope_theta": metadata.real("rope.freq_base")},
            "sliding_attention": {"rope_type": "default", "rope_theta": metadata.real("rope.freq_base_swa", 10000.0)},
        },
        "attention_bias": has_bias(metadata, "attn"),
        "final_logit_softcapping": metadata.real("final_logit_softcapping") if capped else None,
        **_second_embedding(metadata, shared["vocab_size"]),
        **_experts(metadata),
    }


def _heads_of(metadata: ModelMetadata, heads: list[int], kinds: list[str], kind: str) -> int:
    """The number of key heads that all layers of a kind have. Raises SourceError where they differ."""
    key = "attention.head_count_kv"
    own = {count for count, of in zip(heads, kinds, strict=True) if of == kind} or set(heads)
    if len(own) != 1:
        raise SourceError(
            f"{metadata.file.path}: {metadata.name(key)} is {str(metadata.get(key))[:60]}; expected one number in all "
            f"layers of the type {kind!r}."
        )
    return own.pop()


def _feed_forward(metadata: ModelMetadata, first_shared: int) -> dict:
    """The width, which may be twice as large in layers that read the keys of others."""
    key, layers = "feed_forward_length", num_layers(metadata)
    widths = metadata.integers(key, layers)
    doubled = len(set(widths)) > 1
    if widths != [widths[0] * (2 if doubled and layer >= first_shared else 1) for layer in range(layers)]:
        raise SourceError(
            f"{metadata.file.path}: {metadata.name(key)} is {str(widths)[:60]}; expected one width in all layers, or "
            f"twice as much from layer {first_shared} on, which reads the keys of another."
        )
    return {"intermediate_size": widths[0], "use_double_wide_mlp": doubled}


def _values_are_keys(metadata: ModelMetadata, kinds: list[str]) -> bool:
    """Whether layers without a window have no projection of values. Raises SourceError where some have one."""
    names = [f"blk.{layer}.attn_v.weight" for layer, kind in enumerate(kinds) if kind == _FULL]
    missing = [name for name in names if name not in metadata.file.tensors]
    if missing and len(missing) < len(names):
        raise SourceError(
            f"{metadata.file.path}: has no tensor {missing[0]}, but others of layers without a window; expected all, "
            "or none where values are keys."
        )
    return bool(missing)


def _second_embedding(metadata: ModelMetadata, vocab_size: int) -> dict:
    file, key = metadata.file, "embedding_length_per_layer_input"
    width = metadata.integer(key, 0, smallest=0)
    if not width:
        return {"hidden_size_per_layer_input": 0}
    if _SECOND_EMBEDDING not in file.tensors:
        raise SourceError(f"{file.path}: has no tensor {_SECOND_EMBEDDING}, but {metadata.name(key)} is {width}.")
    rows = file.tensors[_SECOND_EMBEDDING].shape[0]
    return {"hidden_size_per_layer_input": width, "vocab_size_per_layer_input": rows}


def _experts(metadata: ModelMetadata) -> dict:
    if not metadata.integer("expert_count", 0, smallest=0):
        return {"enable_moe_block": False}
    return {
        "enable_moe_block": True,
        "num_experts": metadata.integer("expert_count"),
        "top_k_experts": metadata.integer("expert_used_count"),
        "moe_intermediate_size": metadata.integer("expert_feed_forward_length"),
    }


_OUTER = {
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
}
_LAYER = {
    "layer_output_scale.weight": "layer_scalar",
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
    "ffn_gate_inp": "router.proj",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_down_exps.scale": "router.per_expert_scale",
    "post_ffw_norm_1": "post_feedforward_layernorm_1",
    "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
    "post_ffw_norm_2": "post_feedforward_layernorm_2",
}
_KEYS = KEYS | {
    "rope.freq_base_swa",
    "rope.dimension_count_swa",
    "final_logit_softcapping",
    "embedding_length_per_layer_input",
    "expert_feed_forward_length",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attention.shared_kv_layers",
    "attention.key_length_swa",
    "attention.value_length_swa",
}

ARCHITECTURES = {
    "gemma4": Architecture(
        _gemma4,
        FOUR_NORMS | HEAD_NORMS | PROJECTIONS | _LAYER,
        keys=_KEYS,
        outer=OUTER | _OUTER,
        read_by_config=(gguf_rope.ROPE_FREQS,),
        composed=(gguf_experts.packed,),
    ),
}
