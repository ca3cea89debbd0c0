"""Layers that read the keys and values of an earlier one (Brandon et al. 2024, "Cross-Layer Attention").

A layer that gives keys is of a kind of its own, so that no scan repeats it: what it gives is handed on to the layers
behind it beside the residual stream, with a cache or without. Those layers have no cache.

Dimensions as in `decoder`, and P slots in front of those, M the width of values.
"""

import flax.struct
import jax
from jaxtyping import Array, Float

from sft_jax.models.cache import LayerCache, OfLayer
from sft_jax.models.config import DecoderConfig


@flax.struct.dataclass
class Keys:
    """Keys and values as attention takes them.

    Attributes:
        key: of all slots in view.
        value: likewise.
        before: others in front of these, in arrays of their own.
    """

    key: Float[Array, "*L B T K N"]
    value: Float[Array, "*L B T K M"]
    before: tuple[Float[Array, "*L B P K N"], Float[Array, "*L B P K M"]] | None = None


@flax.struct.dataclass
class Given:
    """What a layer that gives keys returns in place of its cache.

    Attributes:
        cache: its cache.
        keys: what it gives.
        window: of the layers that it gives them to.
    """

    cache: LayerCache | None
    keys: Keys
    window: int = flax.struct.field(pytree_node=False)


Shared = dict[int, Keys]  # by the window of the layers that read them
Returned = OfLayer | Given | tuple


def taken(shared: Shared, returned: Returned, stacked: bool = False) -> tuple[Shared, Returned]:
    """The shared keys with those that a layer, or a scan over layers, gives; and the caches alone.

    Args:
        shared: of layers before.
        returned: by the layer; by a scan, a tuple of what each layer of its period returns.
        stacked: there is a leading axis, of one repetition.
    """
    if isinstance(returned, tuple):
        caches = []
        for one in returned:
            shared, cache = taken(shared, one, stacked)
            caches.append(cache)
        return shared, tuple(caches)
    if not isinstance(returned, Given):
        return shared, returned
    keys = jax.tree.map(lambda leaf: leaf[0], returned.keys) if stacked else returned.keys
    return shared | {returned.window: keys}, returned.cache


def keys_for(shared: Shared, layer: DecoderConfig) -> Keys:
    """The keys and values that a layer reads in place of its own.

    Raises:
        ValueError: no layer before gives it some.
    """
    if layer.window not in shared:
        raise ValueError(f"a layer with window={layer.window} reads keys, and no layer before it gives it some")
    return shared[layer.window]
