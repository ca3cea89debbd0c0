"""Rotary position embeddings (Su et al. 2021), in the half-split form that Hugging Face checkpoints use."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sft_jax.models.config import DecoderConfig, RopeScaling


def frequencies(config: DecoderConfig) -> Float[np.ndarray, "half"]:
    """Angular frequency of each pair of a head, radians per position, float32."""
    half = config.head_dim // 2
    inverse = 1.0 / config.rope_theta ** (np.arange(half, dtype=np.float64) * 2 / config.head_dim)
    if config.rope_scaling is not None:
        inverse = _scale_llama3(inverse, config.rope_scaling)
    return inverse.astype(np.float32)


def _scale_llama3(inverse: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Slow frequencies are divided by `factor`, fast ones kept, those between interpolated (Llama 3.1)."""
    wavelength = 2 * math.pi / inverse
    turns = scaling.original_max_positions / wavelength
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)
    return (1 - kept) * inverse / scaling.factor + kept * inverse


def rotation(
    positions: Int[Array, "B S"], inverse: Float[np.ndarray, "half"]
) -> tuple[Float[Array, "B S 1 half"], Float[Array, "B S 1 half"]]:
    """Cosine and sine of every position's angles, float32, ready to broadcast over heads."""
    angles = positions[:, :, None].astype(jnp.float32) * jnp.asarray(inverse)[None, None, :]
    return jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]


def rotate(
    x: Float[Array, "B S H N"], cos: Float[Array, "B S 1 half"], sin: Float[Array, "B S 1 half"]
) -> Float[Array, "B S H N"]:
    """Turns the pairs (i, i + N/2) of every head by the angles of its position; keeps the dtype of `x`."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
