"""The key/value cache: what a decoder has read, so that it need not read it again.

Dimensions: B batch, S tokens that are read at a time, T slots, K key/value heads, N head dim, M width of values,
L layers.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from sft_jax.models.config import DecoderConfig, Execution
from sft_jax.models.layouts import SCAN, UNROLLED, resolved, spans_in


@flax.struct.dataclass
class LayerCache:
    """Keys and values seen so far: [B, K, T, N or M] for one layer, [L, B, K, T, N or M] for stacked layers.

    Heads come first, as the products of attention take them: the slots are not transposed for each token.
    """

    key: Float[Array, "*L B K T N"]
    value: Float[Array, "*L B K T M"]

    def written(
        self, key: Float[Array, "B S K N"], value: Float[Array, "B S K M"], length: Int[Array, ""] | None
    ) -> "LayerCache":
        """One layer's cache with more keys and values, from slot `length` on, or behind all where it is None."""
        heads_first = lambda new: jnp.moveaxis(new, 1, 2)
        return LayerCache(
            write(self.key, heads_first(key), length, axis=2), write(self.value, heads_first(value), length, axis=2)
        )

    def slots_first(self) -> tuple[Float[Array, "B T K N"], Float[Array, "B T K M"]]:
        """Keys and values of one layer, as attention takes them."""
        return jnp.moveaxis(self.key, 2, 1), jnp.moveaxis(self.value, 2, 1)


@flax.struct.dataclass
class DeltaCache:
    """What a gated delta net has read: of one layer, or stacked. It stays as large, however much that is.

    Attributes:
        state: of each value head, after the last token.
        inputs: the last of the convolution, zeros where there were fewer.
        segment: of the text that was read, which alone goes on; 0 is none.
    """

    state: Float[Array, "*L B H N P"]
    inputs: Float[Array, "*L B V C"]
    segment: Int[Array, "*L B"]


OfLayer = LayerCache | DeltaCache | None  # of one layer, or of a stack of equal ones
OfLayers = OfLayer | tuple[OfLayer, ...]


@flax.struct.dataclass
class Cache:
    """The key/value cache, an explicit argument and result of `Decoder.hidden`.

    Attributes:
        layers: of each layer, or each scan over layers, in their order: its keys and values, or its state; of a scan
            over the period of a pattern a tuple, with one for each place in the period. Those of scans are stacked.
            Layers that read the keys of another have none.
        positions: position of each slot.
        segments: segment of each slot; 0 is a slot not yet written, or padding.
        length: slots written so far, from which on the next call writes. None: every slot is written, and the cache
            grows by what is read.
    """

    layers: tuple[OfLayers, ...]
    positions: Int[Array, "B T"]
    segments: Int[Array, "B T"]
    length: Int[Array, ""] | None


def cache_dtype(execution: Execution) -> str:
    """That of cached keys and values: the matmul dtype, to which attention casts them anyway, where it is narrower."""
    narrow = jnp.dtype(execution.matmul_dtype).itemsize < jnp.dtype(execution.activation_dtype).itemsize
    return execution.matmul_dtype if narrow else execution.activation_dtype


def init_cache(config: DecoderConfig, execution: Execution, batch: int, slots: int) -> Cache:
    """An empty cache for `batch` sequences of at most `slots` tokens."""
    dtype = cache_dtype(execution)

    def empty(number: int, *stack: int) -> OfLayer:
        layer = config.of_layer(number)
        if layer.reads_keys:
            return None
        if layer.mixer == "delta":
            return _empty_state(layer, execution, *stack, batch)
        shape, widths = (*stack, batch, layer.num_kv_heads, slots), (layer.head_dim, layer.value_width)
        return LayerCache(*(jnp.zeros((*shape, width), dtype) for width in widths))

    layout = resolved(execution.layer_layout, config)
    if layout == UNROLLED:
        layers = tuple(empty(number) for number in range(config.num_layers))
    elif layout == SCAN:
        layers = (empty(0, config.num_layers),)
    else:
        layers = tuple(
            tuple(empty(span.start + place, span.length) for place in range(span.period)) for span in spans_in(layout)
        )
    slots_shape = (batch, slots)
    return Cache(layers, jnp.zeros(slots_shape, jnp.int32), jnp.zeros(slots_shape, jnp.int32), jnp.zeros((), jnp.int32))


def _empty_state(layer: DecoderConfig, execution: Execution, *batch: int) -> DeltaCache:
    channels = 2 * layer.delta_key_width + layer.delta_value_width
    state = (*batch, layer.delta_value_heads, layer.delta_key_dim, layer.delta_value_dim)
    return DeltaCache(
        state=jnp.zeros(state, jnp.float32),
        inputs=jnp.zeros((*batch, layer.delta_conv_width - 1, channels), execution.activation_dtype),
        segment=jnp.zeros(batch, jnp.int32),
    )


def of_attention(layers: tuple[OfLayers, ...]) -> tuple[OfLayers, ...]:
    """The same with None in place of the states, of which a second cache in front has none."""
    return map_layers(lambda layer: layer if isinstance(layer, LayerCache) else None, layers)


def map_layers(function: Callable[..., Any], *layers: Any) -> Any:
    """`function` of the caches of each layer, or stack of layers, in one or several `Cache.layers` or parts of them."""
    return jax.tree.map(function, *layers, is_leaf=lambda node: isinstance(node, LayerCache | DeltaCache))


def write(
    slots: Shaped[Array, "B ..."], new: Shaped[Array, "B ..."], length: Int[Array, ""] | None, axis: int = 1
) -> Shaped[Array, "B ..."]:
    """The slots, which are counted by `axis`, with `new` from `length` on, or behind all of them where it is None."""
    new = new.astype(slots.dtype)
    if length is None:
        return jnp.concatenate([slots, new], axis=axis)
    return jax.lax.dynamic_update_slice_in_dim(slots, new, length, axis)
