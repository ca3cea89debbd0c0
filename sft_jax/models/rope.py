"""Rotary position embeddings (Su et al. 2021), in the half-split form that Hugging Face checkpoints use."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sft_jax.models.config import (
    DecoderConfig,
    FactorScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ProportionalScaling,
    RopeScaling,
    YarnScaling,
)


@dataclasses.dataclass(frozen=True)
class Rotary:
    """How a layer rotates queries and keys.

    Attributes:
        theta: base of the frequencies.
        dim: leading part of a head that is rotated.
        scaling: how the frequencies are stretched.
    """

    theta: float
    dim: int
    scaling: RopeScaling | None = None


def rotary_of(layer: DecoderConfig) -> Rotary | None:
    """How the layer of a config of one layer (`DecoderConfig.of_layer`) rotates; None where it does not."""
    if layer.learned_positions or (layer.rope_layers and not layer.rope_layers[0]):
        return None
    dim = layer.rope_dim or layer.head_dim
    if layer.window and layer.local_rope_theta:
        return Rotary(layer.local_rope_theta, dim)
    return Rotary(layer.rope_theta, dim, layer.rope_scaling)


@functools.lru_cache(maxsize=64)
def rotaries(config: DecoderConfig) -> tuple[Rotary, ...]:
    """The rotations that the layers of a decoder have, each once, in the order of the layers."""
    found = (rotary_of(config.of_layer(index)) for index in range(config.num_layers))
    return tuple(dict.fromkeys(rotary for rotary in found if rotary is not None))


def frequencies(rotary: Rotary) -> Float[np.ndarray, "half"]:
    """Angular frequency of each pair of a head, radians per position, float32.

    Raises:
        ValueError: they change with the length of a text (`of_length` says which).
    """
    exponents = np.arange(rotary.dim // 2, dtype=np.float64) * 2 / rotary.dim
    return _scaled(1.0 / rotary.theta**exponents, rotary.scaling, rotary.theta).astype(np.float32)


def magnitude(rotary: Rotary) -> float:
    """Factor on cosine and sine."""
    return getattr(rotary.scaling, "attention_factor", 1.0)


def short_positions(config: DecoderConfig) -> int | None:
    """Tokens of the longest text with the frequencies of short ones; None where all texts have the same."""
    scaling = config.rope_scaling
    return scaling.short_positions if isinstance(scaling, LongRopeScaling) else None


def of_length(config: DecoderConfig, tokens: int) -> DecoderConfig:
    """The decoder for texts of so many tokens alone, whose frequencies are the same in all of them."""
    if short_positions(config) is None:
        return config
    return dataclasses.replace(config, rope_scaling=config.rope_scaling.of_length(tokens))


def frequencies_of_texts(
    rotary: Rotary, positions: Int[Array, "B S"], texts: Int[Array, "B S"] | None
) -> Float[Array | np.ndarray, "*BS half"]:
    """The frequencies of all tokens, or of each where they change with the length of its text.

    The length of a text is that of itself alone, as transformers counts it where a text is a batch of its own.

    Args:
        rotary: how a layer rotates.
        positions: of the tokens in their texts.
        texts: number of the text that a token belongs to; None where the tokens are not all there is of them.

    Raises:
        ValueError: they change with a length that is not known.
    """
    if not isinstance(rotary.scaling, LongRopeScaling):
        return frequencies(rotary)
    if texts is None:
        raise ValueError(
            "with a cache the length of a text is not known, by which this model's rotary frequencies change "
            "(LongRoPE); take the decoder for texts of one kind of length (rope.of_length)"
        )
    limit = rotary.scaling.short_positions
    of_texts = lambda tokens: dataclasses.replace(rotary, scaling=rotary.scaling.of_length(tokens))
    short, long = (frequencies(of_texts(tokens)) for tokens in (limit, limit + 1))
    return jnp.where(_beyond(limit, positions, texts)[:, :, None], long[None, None], short[None, None])


def _beyond(limit: int, positions: Int[Array, "B S"], texts: Int[Array, "B S"]) -> Bool[Array, "B S"]:
    """Whether any token of the text that a token belongs to is at position `limit` or behind it."""
    reaching = jnp.where(positions >= limit, texts, -1)
    return jax.vmap(lambda row, found: jnp.isin(row, found, method="sort"))(texts, reaching)


def _scaled(inverse: np.ndarray, scaling: RopeScaling | None, theta: float) -> np.ndarray:
    if isinstance(scaling, LinearScaling):
        return inverse / scaling.factor
    if isinstance(scaling, Llama3Scaling):
        return _scale_llama3(inverse, scaling)
    if isinstance(scaling, YarnScaling):
        return _scale_yarn(inverse, scaling, theta)
    if isinstance(scaling, FactorScaling):
        return inverse / np.asarray(scaling.factors)
    if isinstance(scaling, ProportionalScaling):
        rotated = int(scaling.share * 2 * len(inverse) // 2)
        return np.where(np.arange(len(inverse)) < rotated, inverse / scaling.factor, 0.0)
    if isinstance(scaling, LongRopeScaling):
        raise ValueError("the frequencies of LongRoPE are of texts of a length: take those of rope.of_length")
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
    positions: Int[Array, "B S"], inverse: Float[Array | np.ndarray, "*BS half"], magnitude: float = 1.0
) -> tuple[Float[Array, "B S 1 half"], Float[Array, "B S 1 half"]]:
    """Cosine and sine of every position's angles, float32, ready to broadcast over heads.

    Args:
        positions: of the tokens.
        inverse: frequencies, of all tokens or of each.
        magnitude: factor on both.
    """
    inverse = jnp.asarray(inverse) if inverse.ndim == 3 else jnp.asarray(inverse)[None, None, :]
    angles = positions[:, :, None].astype(jnp.float32) * inverse
    return magnitude * jnp.cos(angles)[:, :, None, :], magnitude * jnp.sin(angles)[:, :, None, :]


def rotate(
    x: Float[Array, "B S H N"],
    cos: Float[Array, "B S 1 half"],
    sin: Float[Array, "B S 1 half"],
    interleaved: bool = False,
) -> Float[Array, "B S H N"]:
    """Rotates the pairs (i, i + R/2) of the first R parts of every head by the angles of its position (R is 2 half).

    Keeps the dtype of `x`. With `interleaved`, the pairs are (2 i, 2 i + 1), and stand in the result as the others do:
    of queries and keys alike, so that their products are the same.
    """
    half = cos.shape[-1]
    wide = x.astype(jnp.float32)
    rest = wide[..., 2 * half :]
    if interleaved:
        first, second = wide[..., 0 : 2 * half : 2], wide[..., 1 : 2 * half : 2]
    else:
        first, second = wide[..., :half], wide[..., half : 2 * half]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
    return rotated.astype(x.dtype)
