"""GGUF files of the Llama family, as llama.cpp writes them, in Hugging Face terms.

Translates names, config and layout: llama.cpp interleaves the rows of the query and key projections for its own form
of the rotary embedding, which is undone here (`permute` in llama.cpp's conversion/llama.py is the forward direction).
"""

import functools
import math
import re

import numpy as np
from etils import epath
from jaxtyping import Float32

from sft_jax.sources.gguf_file import GgufFile, read_gguf, tensor_entry
from sft_jax.sources.tensors import SourceError, TensorEntry

ARCHITECTURES = ("llama",)

_TENSOR_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER = ("token_embd", "output_norm", "output")
_TENSOR_NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<part>[a-z_]+)\.(?P<kind>weight|bias)")
_ROPE_FREQS = "rope_freqs.weight"

# Metadata of the model that is read; another key would mean a feature that the config below does not tell of.
_KNOWN_KEYS = {
    f"llama.{key}"
    for key in (
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
        "rope.freq_base",
        "rope.dimension_count",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope.scaling.finetuned",
        "expert_count",
        "expert_used_count",
    )
}


def read_checkpoint(path: epath.Path) -> tuple[dict, dict[str, TensorEntry], list[epath.Path]]:
    """(config, float32 tensors by Hugging Face name, [path]) of a GGUF file.

    Raises:
      SourceError: not a GGUF file, damaged, of another architecture, or with tensors or metadata that are not known.
    """
    file = read_gguf(path)
    _check_supported(file)
    config = _config(file)
    return config, _tensors(file, config), [path]


def undo_rope_permutation(weight: Float32[np.ndarray, "..."], num_heads: int) -> Float32[np.ndarray, "..."]:
    """Rows of a query or key projection from llama.cpp's order to Hugging Face's; works for its bias too.

    In each head llama.cpp puts rows i and i + head_dim/2 next to each other: with one head of 4 rows, its
    [0, 2, 1, 3] becomes [0, 1, 2, 3].
    """
    pairs = weight.reshape(num_heads, weight.shape[0] // num_heads // 2, 2, *weight.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)


def _check_supported(file: GgufFile) -> None:
    architecture = file.require("general.architecture")
    if architecture not in ARCHITECTURES:
        raise SourceError(
            f"{file.path}: is of the architecture {architecture!r}; GGUF files of {', '.join(ARCHITECTURES)} are "
            "supported. Use the model's Hugging Face directory (safetensors) instead."
        )
    if file.metadata.get("llama.expert_count", 0):
        raise SourceError(f"{file.path}: is a mixture of experts, which is not supported for GGUF files.")
    if file.metadata.get("split.count", 1) != 1:
        raise SourceError(
            f"{file.path}: is one part of a split GGUF file. Join the parts with `llama-gguf-split --merge`."
        )
    unknown = sorted(key for key in file.metadata if key.startswith("llama.") and key not in _KNOWN_KEYS)
    if unknown:
        raise SourceError(
            f"{file.path}: has metadata of features that are not supported: "
            + ", ".join(f"{key} = {str(file.metadata[key])[:60]}" for key in unknown)
            + ". Use the model's Hugging Face directory (safetensors) instead."
        )


def _integer(file: GgufFile, key: str, default: int | None = None) -> int:
    value = file.require(key) if default is None else file.metadata.get(key, default)
    if isinstance(value, list) and len(set(value)) == 1:
        value = value[0]
    if not isinstance(value, int):
        raise SourceError(f"{file.path}: {key} is {value!r}; expected one number for all layers.")
    return value


def _shortest(value: float) -> float:
    """A float32 from the file as the number that was meant: 9.99999974e-06 -> 1e-05."""
    return float(str(np.float32(value)))


def _config(file: GgufFile) -> dict:
    """What config.json would say. Defaults of absent keys are those of the GGUF specification."""
    num_heads = _integer(file, "llama.attention.head_count")
    hidden_size = _integer(file, "llama.embedding_length")
    head_dim = _integer(file, "llama.attention.key_length", hidden_size // num_heads)
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if _integer(file, key, head_dim) != head_dim:
            raise SourceError(f"{file.path}: {key} is {file.metadata[key]}; expected the head dimension {head_dim}.")
    if "token_embd.weight" not in file.tensors:
        raise SourceError(f"{file.path}: has no tensor token_embd.weight: it is not a whole model.")
    vocab_size = file.tensors["token_embd.weight"].shape[0]
    if _integer(file, "llama.vocab_size", vocab_size) != vocab_size:
        stated = file.metadata["llama.vocab_size"]
        raise SourceError(f"{file.path}: llama.vocab_size is {stated}, but token_embd.weight has {vocab_size} rows.")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": _integer(file, "llama.feed_forward_length"),
        "num_hidden_layers": _integer(file, "llama.block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": _integer(file, "llama.attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": _integer(file, "llama.context_length"),
        "rms_norm_eps": _shortest(file.require("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": _shortest(file.metadata.get("llama.rope.freq_base", 10000.0)),
        "attention_bias": any(re.fullmatch(r"blk\.\d+\.attn_.*\.bias", name) for name in file.tensors),
        "mlp_bias": any(re.fullmatch(r"blk\.\d+\.ffn_.*\.bias", name) for name in file.tensors),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": file.metadata.get("tokenizer.ggml.padding_token_id"),
        "dtype": "float32",
    }
    return config | {"rope_scaling": _rope_scaling(file, head_dim, config["rope_theta"])}


def _rope_scaling(file: GgufFile, head_dim: int, rope_theta: float) -> dict | None:
    kind = file.metadata.get("llama.rope.scaling.type", "none")
    if _ROPE_FREQS in file.tensors and kind == "none":
        return _llama3_scaling(file, head_dim, rope_theta)
    if kind == "linear" and _ROPE_FREQS not in file.tensors:
        return {"rope_type": "linear", "factor": _shortest(file.require("llama.rope.scaling.factor"))}
    if kind != "none":
        raise SourceError(
            f"{file.path}: llama.rope.scaling.type is {kind!r}"
            + (f" together with a tensor {_ROPE_FREQS}" if _ROPE_FREQS in file.tensors else "")
            + "; supported are none and linear. Use the model's Hugging Face directory (safetensors) instead."
        )
    return None


def _llama3_scaling(file: GgufFile, head_dim: int, rope_theta: float) -> dict:
    """The Llama 3.1 scaling which `rope_freqs.weight` [head_dim / 2] holds the divisors of.

    The file stores the result and not its four parameters. The largest divisor is `factor`; the other three are the
    same in every Llama 3.1, 3.2 and 3.3 model, and the divisors that follow from them must be those of the file.
    """
    stored = tensor_entry(file.path, file.tensors[_ROPE_FREQS]).load()
    scaling = {
        "rope_type": "llama3",
        "factor": float(stored.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    expected = _llama3_divisors(head_dim, rope_theta, scaling)
    if stored.shape != expected.shape or not np.allclose(stored, expected, rtol=1e-4):
        raise SourceError(
            f"{file.path}: the tensor {_ROPE_FREQS} is not the rope scaling of Llama 3.1 (factor "
            f"{scaling['factor']:g} over a context of 8192), the only one that is supported. Use the model's Hugging "
            "Face directory (safetensors) instead."
        )
    return scaling


def _llama3_divisors(head_dim: int, rope_theta: float, scaling: dict) -> Float32[np.ndarray, "half"]:
    """What each rotary frequency is divided by (as in transformers' `_compute_llama3_parameters`)."""
    wavelength = 2 * math.pi * rope_theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] / wavelength
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / scaling["factor"] + smooth)).astype(np.float32)


def _tensors(file: GgufFile, config: dict) -> dict[str, TensorEntry]:
    tensors, unknown = {}, []
    for name, tensor in file.tensors.items():
        match = _TENSOR_NAME.fullmatch(name)
        if name == _ROPE_FREQS:  # is in the config
            continue
        if match is None or match["part"] not in _TENSOR_NAMES or (match["layer"] is None) != (match["part"] in _OUTER):
            unknown.append(name)
            continue
        entry = tensor_entry(file.path, tensor)
        heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}.get(match["part"])
        if heads is not None:
            if tensor.shape[0] != heads * config["head_dim"]:
                raise SourceError(
                    f"{file.path}: {name} has {tensor.shape[0]} rows; expected {heads} heads x {config['head_dim']}."
                )
            entry = TensorEntry(entry.shape, entry.dtype, functools.partial(_load_unpermuted, entry, heads))
        prefix = "" if match["layer"] is None else f"model.layers.{match['layer']}."
        tensors[f"{prefix}{_TENSOR_NAMES[match['part']]}.{match['kind']}"] = entry
    if unknown:
        raise SourceError(
            f"{file.path}: {len(unknown)} tensors are not part of a Llama model: {', '.join(sorted(unknown)[:5])}. "
            "Use the model's Hugging Face directory (safetensors) instead."
        )
    return tensors


def _load_unpermuted(entry: TensorEntry, num_heads: int) -> np.ndarray:
    return undo_rope_permutation(entry.load(), num_heads)
