"""MXFP4 (Open Compute Project, Microscaling Formats 1.0, 2023) on devices: a kernel in it, and the kernel again.

Blocks of 32 inputs of a column share a power of two, and each weight is one of 16 values (e2m1) of four bits. What
`sources/mxfp4.py` decodes of a file are such numbers: they are encoded again as they are, and nothing is rounded. A
block whose largest value is below 4 gets a smaller power than it had in the file, and values that are as much larger.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sft_jax.sources.mxfp4 import BIAS, LARGEST, VALUES, VALUES_OF_BLOCK

_HALVES = VALUES / 2  # times twice the power, which is a normal float32 where the power itself is none
_BETWEEN = (VALUES[1:8] + VALUES[:7]) / 2
_POWER_OF_LARGEST = 2  # of 4 and 6


def encode(kernel: Float[Array, "I O"]) -> dict[str, Array]:
    """A float32 kernel in MXFP4.

    The power of a block is that of its largest weight divided by 4. Each weight is rounded to the nearest value,
    between two to that with an even code, and beyond 6 to 6 (Microscaling Formats 1.0, 6.3).

    Returns:
        `codes` uint8 [I / 2, O], two inputs a byte, the first in the lower bits; and `exponents` uint8 [I / 32, O],
        127 more than those of two: 4.25 bits a weight.
    """
    blocks = kernel.reshape(-1, VALUES_OF_BLOCK, kernel.shape[1])
    of_largest = jax.lax.bitcast_convert_type(jnp.max(jnp.abs(blocks), axis=1), jnp.uint32) >> 23
    exponents = jnp.clip(of_largest.astype(jnp.int32) - _POWER_OF_LARGEST, 0, LARGEST)
    relative = jnp.abs(blocks) * _power(2 * BIAS - exponents)[:, None]
    # An odd code gives way to the next where a weight lies between the two.
    beyond = [relative > limit if code % 2 == 0 else relative >= limit for code, limit in enumerate(_BETWEEN)]
    codes = sum(part.astype(jnp.uint8) for part in beyond) + jnp.signbit(blocks).astype(jnp.uint8) * jnp.uint8(8)
    codes = codes.reshape(kernel.shape)
    return {"codes": codes[0::2] + codes[1::2] * jnp.uint8(16), "exponents": exponents.astype(jnp.uint8)}


def decode(arrays: dict[str, Array]) -> Float[Array, "I O"]:
    """The float32 kernel that `encode` was given, rounded."""
    pairs = arrays["codes"]
    codes = jnp.stack([pairs & jnp.uint8(15), pairs >> 4], axis=1).reshape(-1, pairs.shape[1])
    powers = jnp.repeat(_power(arrays["exponents"].astype(jnp.int32) + 1), VALUES_OF_BLOCK, axis=0)
    return jnp.take(jnp.asarray(_HALVES), codes.astype(jnp.int32)) * powers


def _power(exponent: Int[Array, "..."]) -> Float[Array, "..."]:
    """2 ** (exponent - 127), for 1 to 254."""
    return jax.lax.bitcast_convert_type(exponent.astype(jnp.uint32) << 23, jnp.float32)
