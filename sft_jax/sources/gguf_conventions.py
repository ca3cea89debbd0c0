"""How llama.cpp writes models of one architecture, and what it writes alike for all of them.

Values that a file leaves out are those that llama.cpp assumes: see conversion/ in its repository for what is written,
and src/models/ for what is assumed on reading.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from sft_jax.sources import gguf_rope
from sft_jax.sources.gguf_file import GgufFile
from sft_jax.sources.gguf_layouts import Layout
from sft_jax.sources.gguf_metadata import ModelMetadata
from sft_jax.sources.tensors import SourceError, TensorEntry

PREDICTED = "nextn_predict_layers"  # layers behind the last one, of multi-token prediction
KEYS = gguf_rope.KEYS | {
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
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
FEED_FORWARD = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
PROJECTIONS = ATTENTION | FEED_FORWARD
TWO_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
FOUR_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
INSTEAD = "Use the model's Hugging Face directory (safetensors) instead."

# (the file, the config) -> tensors by Hugging Face name, and the names of those in the file that they are made of.
Composition = Callable[[GgufFile, dict], tuple[dict[str, TensorEntry], set[str]]]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How llama.cpp writes models of one architecture.

    Attributes:
      config: metadata -> what config.json would say.
      layer: tensors of a layer, GGUF name -> Hugging Face name, without "blk.N." and "model.layers.N."; a name without
        a dot stands for its weight and its bias, one with a dot (or of a tensor that has no ending) for itself alone.
      keys: metadata of the model that is read; another key would mean a feature that the config does not tell of.
      outer: tensors outside the layers, likewise.
      read_by_config: tensors that are part of the config.
      layouts: for the tensors that are stored otherwise than Hugging Face has them, name without ending -> how.
      composed: tensors that are made of several, or of a part of one.
    """

    config: Callable[[ModelMetadata], dict]
    layer: Mapping[str, str]
    keys: frozenset[str] = KEYS
    outer: Mapping[str, str] = dataclasses.field(default_factory=lambda: OUTER)
    read_by_config: tuple[str, ...] = ()
    layouts: Mapping[str, Layout] = dataclasses.field(default_factory=dict)
    composed: tuple[Composition, ...] = ()


def shared_config(metadata: ModelMetadata, partial_rope: bool = False, **known: Any) -> dict:
    """The fields that all architectures spell alike. Defaults of absent keys are those of the GGUF specification.

    Args:
      metadata: of the model.
      partial_rope: `rope.dimension_count` may be less than the head dimension.
      known: fields that this architecture keeps elsewhere.

    Raises:
      SourceError: metadata that is missing, or that contradicts itself or the tensors.
    """
    file = metadata.file
    num_heads = metadata.integer("attention.head_count")
    sizes = {
        "num_hidden_layers": lambda: num_layers(metadata),
        "intermediate_size": lambda: metadata.integer("feed_forward_length"),
        "num_key_value_heads": lambda: metadata.integer("attention.head_count_kv", num_heads),
        "head_dim": lambda: _head_dim(metadata, partial_rope),
    }
    return {
        "vocab_size": _vocab_size(metadata),
        "hidden_size": metadata.integer("embedding_length"),
        "num_attention_heads": num_heads,
        **{name: known[name] if name in known else read() for name, read in sizes.items()},
        "max_position_embeddings": metadata.integer("context_length"),
        "rms_norm_eps": metadata.real("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": file.checked("tokenizer.ggml.bos_token_id", "a whole number"),
        "eos_token_id": file.checked("tokenizer.ggml.eos_token_id", "a whole number"),
        "pad_token_id": file.checked("tokenizer.ggml.padding_token_id", "a whole number"),
        "dtype": "float32",
    }


def num_layers(metadata: ModelMetadata) -> int:
    """Layers of the model itself, without those of multi-token prediction. Raises SourceError if none is left."""
    blocks, predicted = metadata.integer("block_count"), metadata.integer(PREDICTED, 0, smallest=0)
    if predicted >= blocks:
        raise SourceError(
            f"{metadata.file.path}: {metadata.name(PREDICTED)} is {predicted}, but {metadata.name('block_count')} is "
            f"{blocks}; expected a layer at least that is not of multi-token prediction."
        )
    return blocks - predicted


def _head_dim(metadata: ModelMetadata, partial_rope: bool) -> int:
    split = metadata.integer("embedding_length") // metadata.integer("attention.head_count")
    head_dim = metadata.integer("attention.key_length", split)
    for key in ("attention.value_length", *(() if partial_rope else ("rope.dimension_count",))):
        expect(metadata, key, head_dim, "the head dimension")
    return head_dim


def expect(metadata: ModelMetadata, key: str, value: int, what: str) -> None:
    """Raises SourceError where a size is stated and is another than is known from elsewhere."""
    if metadata.integer(key, value) != value:
        raise SourceError(
            f"{metadata.file.path}: {metadata.name(key)} is {metadata.get(key)}; expected {what} {value}."
        )


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


def rope_fields(metadata: ModelMetadata, shared: dict, theta: float | None = 10000.0) -> dict:
    """`rope_theta`, which must be there if `theta` is None, and `rope_scaling`."""
    theta = metadata.real("rope.freq_base", theta)
    return {"rope_theta": theta, "rope_scaling": gguf_rope.rope_scaling(metadata, shared["head_dim"], theta)}


def has_tensor(metadata: ModelMetadata, pattern: str) -> bool:
    """Whether a layer has a tensor whose name behind "blk.N." is of the pattern."""
    return any(re.fullmatch(rf"blk\.\d+\.{pattern}", name) for name in metadata.file.tensors)


def has_bias(metadata: ModelMetadata, part: str) -> bool:
    """Whether projections have biases, of attention ("attn") or of feed-forward layers ("ffn")."""
    return has_tensor(metadata, rf"{part}_.*\.bias")


def stated_layer_types(metadata: ModelMetadata, layers: int) -> list[str]:
    """`layer_types` from the file's list of layers with a window. Raises SourceError where it has none."""
    key = "attention.sliding_window_pattern"
    stated = metadata.get(key)
    if not isinstance(stated, list) or len(stated) != layers or not all(isinstance(one, bool) for one in stated):
        raise SourceError(
            f"{metadata.file.path}: {metadata.name(key)} is {str(stated)[:60]}; expected true or false for each of "
            f"{layers} layers."
        )
    return ["sliding_attention" if slides else "full_attention" for slides in stated]
