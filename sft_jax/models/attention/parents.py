"""What kernels are told of the segments of queries: also of a second one, the parent, that does not end where a query's
own begins."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from sft_jax.models.context import dealt, natural
from sft_jax.models.visibility import Visibility


class QuerySegments(NamedTuple):
    """Which segments queries see.

    Attributes:
        own: segment of each query.
        parents: the second one that each query sees, its own where it has none; None where no query has one.
        behind: where there are parents, the slot that a query would have if its segment stood right behind its parent,
            for a window counts the slots in between for nothing; its own slot where it has no parent.
    """

    own: Int[Array, "... s"]
    parents: Int[Array, "... s"] | None
    behind: Int[Array, "... s"] | None


def query_segments(visibility: Visibility) -> QuerySegments:
    """Of queries that are the slots of the keys, in the order in which `visibility` has them."""
    own, parents = visibility.query_segments, visibility.query_parents
    if parents is None:
        return QuerySegments(own, None, None)
    return QuerySegments(own, parents, _behind(visibility))


def _behind(visibility):
    parts = visibility.dealt
    arrays = (visibility.query_positions, visibility.query_segments, visibility.query_parents)
    positions, segments, parents = (natural(x, parts) for x in arrays)
    slots = jnp.broadcast_to(jnp.arange(positions.shape[1], dtype=jnp.int32)[None], positions.shape)
    is_trunk = (segments > 0) & (segments == parents)
    starts = jax.lax.cummax(jnp.where(is_trunk, slots - positions, 0), axis=1)  # of the last trunk up to here
    return dealt(jnp.where(segments == parents, slots, starts + positions), parts)
