"""The scaling of rotary frequencies in a GGUF file, as the `rope_scaling` of a config.json."""

import math

import numpy as np
from jaxtyping import Float32

from sft_jax.sources.gguf_file import tensor_entry
from sft_jax.sources.gguf_metadata import ModelMetadata
from sft_jax.sources.tensors import SourceError

ROPE_FREQS = "rope_freqs"  # the tensor, in files of Llama 3.1 and later
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long", "rope_factors_short"  # those of LongRoPE, in files of Phi-3
_STAYS = 1e30  # divisor of the frequency of pairs that do not rotate
KEYS = frozenset(
    {
        "rope.freq_base",
        "rope.dimension_count",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope.scaling.finetuned",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
    }
)


def rope_scaling(metadata: ModelMetadata, head_dim: int, rope_theta: float) -> dict | None:
    """`rope_scaling`, or None for frequencies that are not scaled.

    Raises:
      SourceError: a scaling that is not supported.
    """
    stretched = metadata.get("rope.scaling.factor") is not None
    kind = metadata.get("rope.scaling.type", "linear" if stretched else "none")  # as llama.cpp reads it
    divided = f"{ROPE_FREQS}.weight" in metadata.file.tensors
    if divided and kind == "none":
        return _llama3(metadata, head_dim, rope_theta)
    if divided or kind not in ("none", "linear", "yarn"):
        raise SourceError(
            f"{metadata.file.path}: {metadata.name('rope.scaling.type')} is {kind!r}"
            + (f" together with a tensor {ROPE_FREQS}.weight" if divided else "")
            + "; supported are none, linear and yarn. Use the model's Hugging Face directory (safetensors) instead."
        )
    if kind == "linear":
        return {"rope_type": "linear", "factor": metadata.real("rope.scaling.factor")}
    return _yarn(metadata) if kind == "yarn" else None


def _yarn(metadata: ModelMetadata) -> dict:
    """The defaults of both betas and of the attention factor are the same in llama.cpp and in transformers.

    An attention factor in the file (`rope.scaling.yarn_attn_factor`) is refused as an unknown key: llama.cpp multiplies
    its default by it, and transformers takes it instead of the default.
    """
    return {
        "rope_type": "yarn",
        "factor": metadata.real("rope.scaling.factor"),
        "original_max_position_embeddings": metadata.integer("rope.scaling.original_context_length"),
        "beta_fast": metadata.real("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": metadata.real("rope.scaling.yarn_beta_slow", 1.0),
    }


def longrope(metadata: ModelMetadata) -> dict | None:
    """`rope_scaling` of a Phi-3: LongRoPE where the file has its factors, else None.

    Raises:
      SourceError: it has the factors of long texts alone, or of short ones.
    """
    file, stored = metadata.file, {"long_factor": LONG_FACTORS, "short_factor": SHORT_FACTORS}
    found = {key: f"{name}.weight" in file.tensors for key, name in stored.items()}
    if not any(found.values()):
        return None
    if not all(found.values()):
        raise SourceError(f"{file.path}: has one of the tensors {' and '.join(stored.values())}; expected both.")
    factors = {
        key: tensor_entry(file.path, file.tensors[f"{name}.weight"]).load().ravel() for key, name in stored.items()
    }
    return {
        "rope_type": "longrope",
        "attention_factor": metadata.real("rope.scaling.attn_factor"),
        **{key: [float(str(value)) for value in values] for key, values in factors.items()},
    }


def proportional(metadata: ModelMetadata, head_dim: int) -> dict:
    """The rotation of Gemma 4 in layers without a window: the first pairs of a head rotate, the others stay.

    The file has 1 for each pair that rotates and 1e30, by which its frequency is divided, for each that stays.

    Raises:
      SourceError: the tensor is missing, or holds something else.
    """
    file, name = metadata.file, f"{ROPE_FREQS}.weight"
    if name not in file.tensors:
        raise SourceError(f"{file.path}: has no tensor {name}: it is not a whole model.")
    stored = tensor_entry(file.path, file.tensors[name]).load()
    rotating = int(np.sum(stored == 1))
    expected = np.where(np.arange(head_dim // 2) < rotating, 1, _STAYS)
    if stored.shape != expected.shape or not np.array_equal(stored, expected.astype(np.float32)):
        raise SourceError(
            f"{file.path}: the tensor {name} has other divisors than 1 for the first pairs of {head_dim // 2} and "
            f"{_STAYS:g} for the others. Use the model's Hugging Face directory (safetensors) instead."
        )
    return {"rope_type": "proportional", "partial_rotary_factor": 2 * rotating / head_dim}


def _llama3(metadata: ModelMetadata, head_dim: int, rope_theta: float) -> dict:
    """The Llama 3.1 scaling which `rope_freqs.weight` [head_dim / 2] holds the divisors of.

    The file stores the result and not its four parameters. The largest divisor is `factor`; the other three are the
    same in every Llama 3.1, 3.2 and 3.3 model, and the divisors that follow from them must be those of the file.
    """
    file = metadata.file
    stored = tensor_entry(file.path, file.tensors[f"{ROPE_FREQS}.weight"]).load()
    scaling = {
        "rope_type": "llama3",
        "factor": float(stored.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    fits = stored.shape == (head_dim // 2,) and np.all(stored > 0)
    if not fits or not np.allclose(stored, _llama3_divisors(head_dim, rope_theta, scaling), rtol=1e-4):
        raise SourceError(
            f"{file.path}: the tensor {ROPE_FREQS}.weight is not the rope scaling of Llama 3.1 (factor "
            f"{scaling['factor']:g} over a context of 8192), the only one that is supported. Use the model's Hugging "
            "Face directory (safetensors) instead."
        )
    return scaling


def _llama3_divisors(head_dim: int, rope_theta: float, scaling: dict) -> Float32[np.ndarray, "half"]:
    """What each rotary frequency is divided by (as in transformers' `_compute_llama3_parameters`)."""
    wavelength = 2 * math.pi * rope_theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    rotations = scaling["original_max_position_embeddings"] / wavelength
    smooth = np.clip((rotations - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / scaling["factor"] + smooth)).astype(np.float32)
