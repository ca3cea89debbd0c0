"""The key/value cache: what a decoder has read, so that it need not read it again.

Dimensions: B batch, S tokens that are read at a time, T slots, K key/value heads, N head dim, L layers.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from sft_jax.models.config import DecoderConfig, Execution


@flax.struct.dataclass
class LayerCache:
    """Keys and values seen so far: [B, K, T, N] for one layer, [L, B, K, T, N] for stacked layers.

    Heads come first, as the products of attention take them: the slots are not transposed for each token.
    """

    key: Float[Array, "*L B K T N"]
    value: Float[Array, "*L B K T N"]

    def written(
        self, key: Float[Array, "B S K N"], value: Float[Array, "B S K N"], length: Int[Array, ""] | None
    ) -> "LayerCache":
        """One layer's cache with more keys and values, from slot `length` on, or behind all where it is None."""
        heads_first = lambda new: jnp.moveaxis(new, 1, 2)
        return LayerCache(
            write(self.key, heads_first(key), length, axis=2), write(self.value, heads_first(value), length, axis=2)
        )

    def slots_first(self) -> tuple[Float[Array, "B T K N"], Float[Array, "B T K N"]]:
        """Keys and values of one layer, as attention takes them."""
        return jnp.moveaxis(self.key, 2, 1), jnp.moveaxis(self.value, 2, 1)


@flax.struct.dataclass
class Cache:
    """The key/value cache, an explicit argument and result of `Decoder.hidden`.

    Attributes:
        layers: one stacked `LayerCache`, or a tuple with one a layer, as the layer layout says.
        positions: position of each slot.
        segments: segment of each slot; 0 is a slot not yet written, or padding.
        length: slots written so far, from which on the next call writes. None: every slot is written, and the cache
            grows by what is read.
    """

    layers: LayerCache | tuple[LayerCache, ...]
    positions: Int[Array, "B T"]
    segments: Int[Array, "B T"]
    length: Int[Array, ""] | None


def cache_dtype(execution: Execution) -> str:
    """That of cached keys and values: the matmul dtype, to which attention casts them anyway, where it is narrower."""
    narrow = jnp.dtype(execution.matmul_dtype).itemsize < jnp.dtype(execution.activation_dtype).itemsize
    return execution.matmul_dtype if narrow else execution.activation_dtype


def init_cache(config: DecoderConfig, execution: Execution, batch: int, slots: int) -> Cache:
    """An empty cache for `batch` sequences of at most `slots` tokens."""
    shape = (batch, config.num_kv_heads, slots, config.head_dim)
    dtype = cache_dtype(execution)

    def empty(*stack: int) -> LayerCache:
        return LayerCache(key=jnp.zeros((*stack, *shape), dtype), value=jnp.zeros((*stack, *shape), dtype))

    layers = (
        empty(config.num_layers)
        if execution.layer_layout == "scan"
        else tuple(empty() for _ in range(config.num_layers))
    )
    slots_shape = (batch, slots)
    return Cache(layers, jnp.zeros(slots_shape, jnp.int32), jnp.zeros(slots_shape, jnp.int32), jnp.zeros((), jnp.int32))


def write(
    slots: Shaped[Array, "B ..."], new: Shaped[Array, "B ..."], length: Int[Array, ""] | None, axis: int = 1
) -> Shaped[Array, "B ..."]:
    """The slots, which are counted by `axis`, with `new` from `length` on, or behind all of them where it is None."""
    new = new.astype(slots.dtype)
    if length is None:
        return jnp.concatenate([slots, new], axis=axis)
    return jax.lax.dynamic_update_slice_in_dim(slots, new, length, axis)
