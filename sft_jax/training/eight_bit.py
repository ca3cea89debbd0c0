"""Adam whose moments are kept in 8 bits, a block of 256 at a time (Dettmers et al. 2022,
https://arxiv.org/abs/2110.02861).

A moment is stored as the nearest of 256 numbers in [-1, 1] (the first) or [0, 1] (the second), times the largest of its
block. The numbers are the paper's dynamic tree: seven decades, each divided more finely than the one below it. Arrays
with fewer than 4096 entries a matrix keep their moments in float32. Codes have the shape of their parameter and lie
where it lies; blocks run along the last axis, or along the one before where that is longer.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8

from sft_jax.models.layouts import is_stacked
from sft_jax.models.variables import matrix_axes
from sft_jax.sharding import path_string

Tree = Any
BLOCK, SMALL = 256, 4096
_DECADES = 7


def dynamic_tree(*, signed: bool) -> Float[np.ndarray, "256"]:
    """The numbers a code stands for, in order."""
    values = [0.0, 1.0]
    for decade in range(_DECADES):
        edges = np.linspace(0.1, 1, 2 ** (decade if signed else decade + 1) + 1)
        middles = 10.0 ** (decade - _DECADES + 1) * (edges[:-1] + edges[1:]) / 2
        values += [*middles, *-middles] if signed else [*middles]
    return np.sort(np.asarray(values, np.float32))


_SIGNED, _UNSIGNED = dynamic_tree(signed=True), dynamic_tree(signed=False)


class EightBitAdamState(NamedTuple):
    """Both moments; each tree is like the parameters.

    Attributes:
        count: updates done.
        mu: first moment: codes, or float32 where it is small.
        mu_scale: float32, the largest of each block; zeros where the moment is small.
        nu: second moment, likewise.
        nu_scale: likewise.
    """

    count: Int[Array, ""]
    mu: Tree
    mu_scale: Tree
    nu: Tree
    nu_scale: Tree


def scale_by_adam(
    beta1: Float[Array, ""], beta2: Float[Array, ""], epsilon: Float[Array, ""]
) -> optax.GradientTransformation:
    """Adam's direction, from moments in 8 bits; the parameters may be stacked over layers and experts or not."""

    def init(params: Tree) -> EightBitAdamState:
        mu, mu_scale = _unzip(params, lambda path, leaf: _of_zeros(path, leaf.shape, _SIGNED))
        nu, nu_scale = _unzip(params, lambda path, leaf: _of_zeros(path, leaf.shape, _UNSIGNED))
        return EightBitAdamState(jnp.zeros((), jnp.int32), mu, mu_scale, nu, nu_scale)

    def update(updates: Tree, state: EightBitAdamState, params: Tree = None) -> tuple[Tree, EightBitAdamState]:
        del params
        count = state.count + 1

        def adam(gradient: Any, first: Array, second: Array) -> tuple[Array, Array, Array]:
            wide = gradient.astype(jnp.float32)
            first, second = beta1 * first + (1 - beta1) * wide, beta2 * second + (1 - beta2) * wide**2
            corrected = first / (1 - beta1**count), second / (1 - beta2**count)
            direction = corrected[0] / (jnp.sqrt(corrected[1]) + epsilon)
            return direction.astype(gradient.dtype), first, second

        def in_codes(gradient: Any, mu: Array, mu_scale: Array, nu: Array, nu_scale: Array) -> tuple:
            read = _decoded(mu, mu_scale, _SIGNED), _decoded(nu, nu_scale, _UNSIGNED)
            direction, first, second = adam(gradient, *read)
            return (direction, *_coded(first, _SIGNED), *_coded(second, _UNSIGNED))

        def one(path: tuple, gradient: Any, mu: Array, mu_scale: Array, nu: Array, nu_scale: Array) -> tuple:
            if _is_small(path, gradient.shape):
                direction, mu, nu = adam(gradient, mu, nu)
                return direction, mu, mu_scale, nu, nu_scale
            arrays = (gradient, mu, mu_scale, nu, nu_scale)
            # One layer of a stack at a time: what is in float32 meanwhile is a layer's, not the model's.
            by_layer = is_stacked(path_string(path))
            return jax.lax.map(lambda layer: in_codes(*layer), arrays) if by_layer else in_codes(*arrays)

        direction, *moments = _unzip(updates, one, state.mu, state.mu_scale, state.nu, state.nu_scale)
        return direction, EightBitAdamState(count, *moments)

    return optax.GradientTransformation(init, update)


def _unzip(tree: Tree, function: Any, *rest: Tree) -> list[Tree]:
    """Several trees, of what `function(path, leaf, …)` gives for each leaf."""
    results = jax.tree_util.tree_map_with_path(function, tree, *rest)
    structure = jax.tree.structure(tree)
    columns = zip(*structure.flatten_up_to(results), strict=True)
    return [jax.tree.unflatten(structure, column) for column in columns]


def _is_small(path: tuple, shape: tuple[int, ...]) -> bool:
    axes = matrix_axes(path_string(path), len(shape))
    return int(np.prod(shape[len(shape) - axes :])) < SMALL


def _of_zeros(path: tuple, shape: tuple[int, ...], values: np.ndarray) -> tuple[Array, Float[Array, "*T"]]:
    """(codes, scales) of a moment of zeros; itself, and a zero a stack, where it is small."""
    if _is_small(path, shape):
        axes = matrix_axes(path_string(path), len(shape))
        return jnp.zeros(shape, jnp.float32), jnp.zeros((*shape[: len(shape) - axes], *(1,) * axes), jnp.float32)
    codes, scale = jax.eval_shape(lambda: _coded(jnp.zeros(shape, jnp.float32), values))
    zero = int(np.searchsorted(values, 0.0))
    return jnp.full(codes.shape, zero, codes.dtype), jnp.zeros(scale.shape, scale.dtype)


def _coded(moment: Float[Array, "*S"], values: np.ndarray) -> tuple[UInt8[Array, "*S"], Float[Array, "*T"]]:
    """(codes, scales) of a moment."""
    blocks = _in_blocks(moment)
    scale = jnp.max(jnp.abs(blocks), axis=-1)
    relative = blocks / jnp.where(scale > 0, scale, 1.0)[..., None]
    codes = jnp.searchsorted(jnp.asarray((values[1:] + values[:-1]) / 2), relative).astype(jnp.uint8)
    if values[0] == 0:  # a second moment of 0 beside a first that is not would make a step of first / epsilon
        codes = jnp.maximum(codes, (relative > 0).astype(jnp.uint8))
    return _out_of_blocks(codes, moment.shape), _turned(scale, moment.shape)


def _decoded(codes: UInt8[Array, "*S"], scale: Array, values: np.ndarray) -> Float[Array, "*S"]:
    blocks = jnp.take(jnp.asarray(values), _in_blocks(codes).astype(jnp.int32))
    return _out_of_blocks(blocks * _turned(scale, codes.shape)[..., None], codes.shape)


def _turned(x: Array, shape: tuple[int, ...]) -> Array:
    """With the axis of blocks last, or back where it was."""
    return jnp.swapaxes(x, -1, -2) if len(shape) > 1 and shape[-2] > shape[-1] else x


def _in_blocks(x: Array) -> Array:
    """[*, n] -> [*, blocks, 256]; what is missing in the last block is 0."""
    turned = _turned(x, x.shape)
    missing = -turned.shape[-1] % BLOCK
    padded = jnp.pad(turned, [(0, 0)] * (turned.ndim - 1) + [(0, missing)])
    return padded.reshape(*turned.shape[:-1], -1, BLOCK)


def _out_of_blocks(blocks: Array, shape: tuple[int, ...]) -> Array:
    length = max(shape[-2:])
    flat = blocks.reshape(*blocks.shape[:-2], -1)[..., :length]
    return _turned(flat, shape)
