"""A short causal convolution of each channel over the tokens of a segment, followed by silu.

Dimensions: B batch, S tokens, C channels, W width of the convolution, V = W - 1, E places of a row.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sft_jax.models.delta.order import Order


def convolved(
    x: Float[Array, "B S C"], kernel: Float[Array, "W C"], order: Order, before: Float[Array, "B V C"] | None
) -> Float[Array, "B S C"]:
    """silu of the sum over a token and the W - 1 that it goes on from, each times its row of the kernel.

    The last row is that of the token itself. What stands before the first token of a text is zero.

    Args:
        x: inputs.
        kernel: weights of each channel.
        order: which tokens go on from which.
        before: the last inputs of what `order.carried` is; None where nothing is. Without these and without parents
            the tokens of a segment must stand one behind the other.
    """
    width = kernel.shape[0]
    kernel = kernel.astype(jnp.float32)
    total = x.astype(jnp.float32) * kernel[-1][None, None]
    at_once = before is None and order.parents is None
    earlier = _shifted(x, order, width) if at_once else _earlier(x, order, width, before)
    for steps, inputs in enumerate(earlier, 1):
        total += inputs.astype(jnp.float32) * kernel[-1 - steps][None, None]
    return jax.nn.silu(total).astype(x.dtype)


def _shifted(x: Array, order: Order, width: int) -> list[Array]:
    """The inputs 1, 2, ... tokens before each."""
    behind = lambda values, steps: jnp.pad(values, ((0, 0), (steps, 0), *((0, 0),) * (values.ndim - 2)))[
        :, : x.shape[1]
    ]
    return [
        jnp.where((behind(order.segments, steps) == order.segments)[..., None], behind(x, steps), 0)
        for steps in range(1, width)
    ]


def _earlier(x: Array, order: Order, width: int, before: Array | None) -> list[Array]:
    slots, index = _with_carried(x, order, width, before)
    found, places = [], index[:, width:]
    for _ in range(1, width):
        found.append(_at(slots, places))
        places = _at(index, places)
    return found


def _with_carried(x: Array, order: Order, width: int, before: Array | None) -> tuple[Array, Array]:
    """Inputs behind a zero and those that were carried, and the slot that each goes on from; of the zero, itself."""
    batch, _, channels = x.shape
    if before is None:
        before = jnp.zeros((batch, width - 1, channels), x.dtype)
    slots = jnp.concatenate([jnp.zeros((batch, 1, channels), x.dtype), before.astype(x.dtype), x], axis=1)
    of_carried = jnp.broadcast_to(jnp.maximum(jnp.arange(width, dtype=jnp.int32) - 1, 0)[None], (batch, width))
    found = order.predecessors()  # -1: the last that was carried, which is slot `width` - 1
    return slots, jnp.concatenate([of_carried, jnp.where(found == -2, 0, found + width)], axis=1)


def _at(values: Array, places: Array) -> Array:
    return jnp.take_along_axis(values, places.reshape(*places.shape, *(1,) * (values.ndim - 2)), axis=1)


def last_inputs(
    x: Float[Array, "B S C"], order: Order, before: Float[Array, "B V C"], ends: Int[Array, "B E"] | None
) -> Float[Array, "B E V C"]:
    """The last inputs of the texts that go up to tokens `ends`; None is the last token of each row."""
    width = before.shape[1] + 1
    slots, index = _with_carried(x, order, width, before)
    places = (order.last()[:, -1:] if ends is None else ends) + width
    found = []
    for _ in range(1, width):
        found.append(_at(slots, places))
        places = _at(index, places)
    return jnp.stack(found[::-1], axis=2)
