"""Stochastic rounding: bfloat16 values are rounded up or down at random, so that the expected value is exact.

Rounded to the nearest, a parameter of 0.02 stays where it is under updates smaller than 2^-9 of it, and a second moment
decays no more once beta2 is above 1 - 2^-9: each update is lost, and so is their sum. Rounded stochastically,
each has its effect on average (Gupta et al. 2015, https://arxiv.org/abs/1502.02551; for updates of
parameters in bfloat16: Zamirai et al. 2020, https://arxiv.org/abs/2010.06192).

The random bits are a function of seed, step, name of the array, and number of the layer: the same on any mesh, in
either layer layout, and after a resume.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float32, Key, UInt32

from sft_jax.models.layouts import is_stacked, numbers_of
from sft_jax.models.variables import canonical_path
from sft_jax.sharding import path_string

Tree = Any
_STREAM = zlib.crc32(b"stochastic rounding")  # beside those of dropout and noise
_LOW_BITS = 16  # that float32 has and bfloat16 has not


def rounding_key(seed: UInt32[Array, ""], step: Array) -> Key[Array, ""]:
    """The key of all rounding in one step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _STREAM), step)


def in_float32(tree: Tree) -> Tree:
    """Floating arrays in float32, in which updates are computed whatever they are kept in."""
    wide = lambda leaf: leaf.astype(jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
    return jax.tree.map(wide, tree)


def kept_like(new: Tree, old: Tree, key: Key[Array, ""]) -> Tree:
    """`new` in the dtypes of `old`; float32 becomes bfloat16 by stochastic rounding.

    Args:
        new: what was computed.
        old: a tree of the same structure.
        key: of this step and this tree.
    """

    def one(path: tuple, leaf: Array, like: Array) -> Array:
        if like.dtype != jnp.bfloat16:
            return leaf.astype(like.dtype)
        name = path_string(path)
        own = jax.random.fold_in(key, zlib.crc32(canonical_path(name).encode()))
        layers = numbers_of(name, leaf.shape[0] if leaf.ndim else 1)
        if is_stacked(name):
            keys = jax.vmap(lambda layer: jax.random.fold_in(own, layer))(jnp.asarray(layers))
            return jax.vmap(round_stochastically)(leaf, keys)
        return round_stochastically(leaf, own if layers is None else jax.random.fold_in(own, layers[0]))

    return jax.tree_util.tree_map_with_path(one, new, old)


def round_stochastically(x: Float32[Array, "*S"], key: Key[Array, ""]) -> BFloat16[Array, "*S"]:
    """One of the two nearest bfloat16 numbers, each the likelier the nearer it is; `x` in the mean.

    1 + 2^-9 lies a quarter of the way from 1 to 1 + 2^-7, and becomes the latter with probability 1/4.
    """
    noise = jax.random.bits(key, x.shape, jnp.uint32) >> _LOW_BITS
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise
    cut = jax.lax.bitcast_convert_type(bits >> _LOW_BITS << _LOW_BITS, jnp.float32)
    return jnp.where(jnp.isfinite(x), cut, x).astype(jnp.bfloat16)
