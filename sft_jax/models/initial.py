"""Random parameters, for ablations and tests: where no pretrained weights are wanted."""

import functools
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Sharding
from jaxtyping import Array, Key

from sft_jax.models.config import DecoderConfig, Execution, LayerLayout
from sft_jax.models.decoder import Decoder


def init_params(
    config: DecoderConfig,
    layout: LayerLayout,
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
    for path, leaf in flatten_dict(parameter_shapes(config), sep="/").items():
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
        for name, shape, keys in _pieces(path, leaf.shape, key, layout):
            arrays[name] = _maker(path, shape, config, deviation, dtype, sharding(name, shape))(keys)
    return unflatten_dict(arrays, sep="/")


@functools.lru_cache(maxsize=16)  # a run asks several times, and so does each of the next ones
def parameter_shapes(config: DecoderConfig) -> dict:
    """Shapes of the parameters in the stacked layout, float32."""
    model = Decoder(config, Execution(layer_layout="scan"))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])


@functools.lru_cache(maxsize=64)  # the layers of a model that are arrays of their own have one program together
def _maker(
    path: str, shape: tuple[int, ...], config: DecoderConfig, deviation: float, dtype: str, sharding: Sharding
) -> Callable[[Key[Array, "*L"]], Array]:
    make = lambda keys: _values(path, shape, keys, config, deviation).astype(dtype)
    return jax.jit(make, out_shardings=sharding)


def _pieces(path: str, shape: tuple[int, ...], key: Key[Array, ""], layout: LayerLayout):
    """(path, shape, keys) of each array that is made of a stacked one; a layer has a key of its own."""
    if not path.startswith("layers/"):
        return [(path, shape, key)]
    keys = jax.random.split(key, shape[0])
    if layout == "scan":
        return [(path, shape, keys)]
    rest = path.removeprefix("layers/")
    return [(f"layers_{number}/{rest}", shape[1:], keys[number]) for number in range(shape[0])]


def _values(
    path: str, shape: tuple[int, ...], keys: Key[Array, "*L"], config: DecoderConfig, deviation: float
) -> Array:
    if path.endswith("scale"):
        return jnp.full(shape, 1.0 - config.norm_offset, jnp.float32)
    if path.endswith("bias"):
        return jnp.zeros(shape, jnp.float32)
    if keys.ndim:
        return deviation * jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(keys)
    return deviation * jax.random.normal(keys, shape)
