"""Rotary position embeddings (Su et al. 2021), in the half-split form that Hugging Face checkpoints use."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sft_jax.models.config import DecoderConfig, LinearScaling, Llama3Scaling, RopeScaling, YarnScaling

NONE, GLOBAL, LOCAL = 0, 1, 2  # how a layer rotates: not at all, with the model's base, with that of windowed layers


def layer_kinds(config: DecoderConfig) -> tuple[int, ...]:
    """NONE, GLOBAL or LOCAL for each layer."""
    if config.learned_positions:
        return (NONE,) * config.num_layers
    rotates = config.rope_layers or (True,) * config.num_layers
    windows = config.layer_windows or (0,) * config.num_layers
    local = [bool(window and config.local_rope_theta) for window in windows]
    return tuple(
        (LOCAL if is_local else GLOBAL) if rotated else NONE for rotated, is_local in zip(rotates, local, strict=True)
    )


def frequencies(config: DecoderConfig, kind: int = GLOBAL) -> Float[np.ndarray, "half"]:
    """Angular frequency of each pair of a head, radians per position, float32; NONE has zeros."""
    dim = config.rope_dim or config.head_dim
    exponents = np.arange(dim // 2, dtype=np.float64) * 2 / dim
    if kind == NONE:
        return np.zeros(dim // 2, np.float32)
    if kind == LOCAL:
        return (1.0 / config.local_rope_theta**exponents).astype(np.float32)
    inverse = 1.0 / config.rope_theta**exponents
    return _scaled(inverse, config.rope_scaling, config.rope_theta).astype(np.float32)


def magnitude(config: DecoderConfig, kind: int = GLOBAL) -> float:
    """Factor on cosine and sine."""
    scaling = config.rope_scaling
    return scaling.attention_factor if kind == GLOBAL and isinstance(scaling, YarnScaling) else 1.0


def _scaled(inverse: np.ndarray, scaling: RopeScaling | None, theta: float) -> np.ndarray:
    if isinstance(scaling, LinearScaling):
        return inverse / scaling.factor
    if isinstance(scaling, Llama3Scaling):
        return _scale_llama3(inverse, scaling)
    if isinstance(scaling, YarnScaling):
        return _scale_yarn(inverse, scaling, theta)
    return inverse


def _scale_llama3(inverse: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    """Slow frequencies are divided by `factor`, fast ones kept, those between interpolated (Llama 3.1)."""
    wavelength = 2 * math.pi / inverse
    rotations = scaling.original_max_positions / wavelength
    kept = (rotations - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)
    return (1 - kept) * inverse / scaling.factor + kept * inverse


def _scale_yarn(inverse: np.ndarray, scaling: YarnScaling, theta: float) -> np.ndarray:
    """Interpolates between the pairs that rotate `beta_fast` and `beta_slow` times in the original context."""
    dim = 2 * len(inverse)

    def pair_that_rotates(times: float) -> float:
        return dim * math.log(scaling.original_max_positions / (times * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_that_rotates(scaling.beta_fast), pair_that_rotates(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - first) / max(last - first, 0.001), 0.0, 1.0)
    return ramp * inverse / scaling.factor + (1 - ramp) * inverse


def rotation(
    positions: Int[Array, "B S"], inverse: Float[np.ndarray, "half"], magnitude: float = 1.0
) -> tuple[Float[Array, "B S 1 half"], Float[Array, "B S 1 half"]]:
    """Cosine and sine of every position's angles, float32, ready to broadcast over heads."""
    angles = positions[:, :, None].astype(jnp.float32) * jnp.asarray(inverse)[None, None, :]
    return magnitude * jnp.cos(angles)[:, :, None, :], magnitude * jnp.sin(angles)[:, :, None, :]


def rotate(
    x: Float[Array, "B S H N"], cos: Float[Array, "B S 1 half"], sin: Float[Array, "B S 1 half"]
) -> Float[Array, "B S H N"]:
    """Rotates the pairs (i, i + R/2) of the first R parts of every head by the angles of its position (R is 2 half).

    Keeps the dtype of `x`.
    """
    half = cos.shape[-1]
    wide = x.astype(jnp.float32)
    first, second, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
    return rotated.astype(x.dtype)
