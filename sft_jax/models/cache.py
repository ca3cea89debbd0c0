"""The key/value cache: what a decoder has read, so that it need not read it again.

Dimensions: B batch, S tokens that are read at a time, T slots, K key/value heads, N head dim, L layers.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from sft_jax.models.config import DecoderConfig, Execution

SELECTED_SLOTS = 1024  # of a cache, up to which a token for each sequence is written by selecting


@flax.struct.dataclass
class LayerCache:
    """Keys and values seen so far: [B, K, T, N] for one layer, [L, B, K, T, N] for stacked layers.

    Heads come first, as the products of attention take them: the slots are not transposed for each token.
    """

    key: Float[Array, "*L B K T N"]
    value: Float[Array, "*L B K T N"]

    def written(
        self, key: Float[Array, "B S K N"], value: Float[Array, "B S K N"], length: Int[Array, "*B"] | None
    ) -> "LayerCache":
        """One layer's cache with more keys and values, from slot `length` on, or behind all where it is None."""
        heads_first = lambda new: jnp.moveaxis(new, 1, 2)
        return LayerCache(
            write(self.key, heads_first(key), length, axis=2), write(self.value, heads_first(value), length, axis=2)
        )

    def first(self, slots: int) -> tuple[Float[Array, "B t K N"], Float[Array, "B t K N"]]:
        """Keys and values in the first so many slots of one layer; 0: in all."""
        return tuple(jnp.moveaxis(of[:, :, : slots or None], 2, 1) for of in (self.key, self.value))


@flax.struct.dataclass
class Cache:
    """The key/value cache, an explicit argument and result of `Decoder.hidden`.

    Attributes:
        layers: one stacked `LayerCache`, or a tuple with one a layer, as the layer layout says.
        positions: position of each slot.
        segments: segment of each slot; 0 is a slot not yet written, or padding.
        length: slots written so far, from which on the next call writes: one number for all sequences, or one each.
            None: every slot is written, and the cache grows by what is read.
        read: attention looks at the first so many slots; 0: at all.
    """

    layers: LayerCache | tuple[LayerCache, ...]
    positions: Int[Array, "B T"]
    segments: Int[Array, "B T"]
    length: Int[Array, "*B"] | None
    read: int = flax.struct.field(pytree_node=False, default=0)


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
    slots: Shaped[Array, "B ..."], new: Shaped[Array, "B ..."], length: Int[Array, "*B"] | None, axis: int = 1
) -> Shaped[Array, "B ..."]:
    """The slots, which are counted by `axis`, with `new` from `length` on, or behind all of them where it is None."""
    new = new.astype(slots.dtype)
    if length is None:
        return jnp.concatenate([slots, new], axis=axis)
    start_at = lambda ndim, axis, start, other=0: tuple(start if n == axis else other for n in range(ndim))
    if length.ndim == 0:
        return jax.lax.dynamic_update_slice(slots, new, start_at(slots.ndim, axis, length))
    if new.shape[axis] == 1 and slots.shape[axis] <= SELECTED_SLOTS:
        # One slot of each sequence: XLA has a loop over sequences for that on CPUs, six times as slow as this.
        places = jnp.arange(slots.shape[axis]).reshape(start_at(slots.ndim, axis, -1, other=1))
        return jnp.where(places == length.reshape(-1, *[1] * (slots.ndim - 1)), new, slots)
    one = lambda own, more, start: jax.lax.dynamic_update_slice(own, more, start_at(own.ndim, axis - 1, start))
    return jax.vmap(one)(slots, new, length)
