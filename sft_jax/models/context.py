"""How the tokens of long sequences are dealt out to the devices of the mesh axis `context`."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped


def dealt_order(length: int, parts: int) -> np.ndarray:
    """The slots of a sequence, in the order in which they are dealt out, int32 [length].

    A sequence is cut into 2 `parts` chunks, and part i of the result, which is device i's, is chunk i and then chunk
    2 `parts` - 1 - i: so that each device has as many (query, earlier key) pairs as the others (Llama 3, Dubey et al.
    2024, section 3.3.2). Worked example: 8 slots, 2 parts give 0 1 6 7 and 2 3 4 5.

    Args:
        length: of a sequence, in tokens.
        parts: devices of the axis; 1 leaves the order.

    Raises:
        ValueError: the chunks would not be equally long.
    """
    check_length(length, parts)
    if parts == 1:
        return np.arange(length, dtype=np.int32)
    chunks = np.arange(length, dtype=np.int32).reshape(2 * parts, -1)
    return np.concatenate([chunks[[part, 2 * parts - 1 - part]].ravel() for part in range(parts)])


def check_length(length: int, parts: int) -> None:
    """Checks that sequences of this length can be dealt out to so many parts.

    Raises:
        ValueError: the chunks would not be equally long.
    """
    if parts > 1 and length % (2 * parts):
        raise ValueError(
            f"--config.data.sequence_length={length} must be a multiple of {2 * parts}, twice --config.mesh.context"
        )


def dealt(x: Shaped[Array, "B S ..."], parts: int) -> Shaped[Array, "B S ..."]:
    """What stands from first to last, in the order in which it is dealt out to so many parts."""
    return _in_chunks(x, dealt_order(2 * parts, parts))


def natural(x: Shaped[Array, "B S ..."], parts: int) -> Shaped[Array, "B S ..."]:
    """What was dealt out to so many parts, from first to last again."""
    return _in_chunks(x, np.argsort(dealt_order(2 * parts, parts)))


def _in_chunks(x: Shaped[Array, "B S ..."], order: np.ndarray) -> Shaped[Array, "B S ..."]:
    if len(order) == 2:
        return x  # of one part
    chunks = x.reshape(x.shape[0], len(order), -1, *x.shape[2:])
    return jnp.take(chunks, order, axis=1).reshape(x.shape)
