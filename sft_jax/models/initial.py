"""Random parameters, for ablations and tests: where no pretrained weights are wanted."""

import functools
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Sharding
from jaxtyping import Array, Key

from sft_jax.models.config import DecoderConfig, Execution
from sft_jax.models.decoder import Decoder
from sft_jax.models.layouts import SCAN, UNROLLED, is_stacked, numbers_of, of_one_layer, resolved, to_layout


def init_params(
    config: DecoderConfig,
    layout: str,
    dtype: str,
    sharding: Callable[[str, tuple[int, ...]], Sharding],
    seed: int,
    deviation: float,
) -> dict:
    """Normal weights and embeddings, norms that scale by 1, biases of 0: as transformers initialises most families.

    Each array is made where it lives; the numbers depend neither on the layout nor on the mesh.

    Args:
        config: the decoder.
        layout: layer layout of the result.
        dtype: dtype of the result.
        sharding: where the array of a path and shape lives.
        seed: of all random numbers.
        deviation: standard deviation of weights and embeddings.
    """
    arrays = {}
    for path, leaf in flatten_dict(parameter_shapes(config, layout), sep="/").items():
        one, numbers = of_one_layer(path), numbers_of(path, leaf.shape[0])
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(one.encode()))
        if numbers is not None:  # a layer has a key of its own
            keys = jax.random.split(key, config.num_layers)
            key = keys[np.asarray(numbers)] if is_stacked(path) else keys[numbers[0]]
        arrays[path] = _maker(one, leaf.shape, config, deviation, dtype, sharding(path, leaf.shape))(key)
    return unflatten_dict(arrays, sep="/")


@functools.lru_cache(maxsize=16)  # a run asks several times, and so does each of the next ones
def parameter_shapes(config: DecoderConfig, layout: str = SCAN) -> dict:
    """Shapes of the parameters, float32; `scan` is the layout of this decoder."""
    model = Decoder(config, Execution(layer_layout=UNROLLED))
    make = lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return jax.eval_shape(lambda: to_layout(make(), resolved(layout, config)))


@functools.lru_cache(maxsize=64)  # the layers of a model that are arrays of their own have one program together
def _maker(
    path: str, shape: tuple[int, ...], config: DecoderConfig, deviation: float, dtype: str, sharding: Sharding
) -> Callable[[Key[Array, "*L"]], Array]:
    make = lambda keys: _values(path, shape, keys, config, deviation).astype(dtype)
    return jax.jit(make, out_shardings=sharding)


def _values(
    path: str, shape: tuple[int, ...], keys: Key[Array, "*L"], config: DecoderConfig, deviation: float
) -> Array:
    if path.endswith("delta/a_log"):  # as Mamba 2 has it
        return _drawn(keys, shape, lambda key, shape: jnp.log(jax.random.uniform(key, shape, minval=0.01, maxval=16.0)))
    if path.endswith(("delta/dt_bias", "delta/norm/scale")):
        return jnp.ones(shape, jnp.float32)
    if path.endswith("scale"):
        return jnp.full(shape, 1.0 - config.norm_offset, jnp.float32)
    if path.endswith("bias"):
        return jnp.zeros(shape, jnp.float32)
    return deviation * _drawn(keys, shape, jax.random.normal)


def _drawn(keys: Key[Array, "*L"], shape: tuple[int, ...], draw: Callable[..., Array]) -> Array:
    """Of each layer from its own key."""
    return jax.vmap(lambda key: draw(key, shape[1:]))(keys) if keys.ndim else draw(keys, shape)
