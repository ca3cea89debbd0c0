"""Which keys each query sees, as one small structure that every attention takes."""

import flax.struct
from jaxtyping import Array, Bool, Int


@flax.struct.dataclass
class Visibility:
    """Which keys a query sees: those of its own segment, and of its parent, at its own or an earlier position.

    Segment 0 is padding and sees only padding. A query that sees no key at all, as that of an idle slot of a cache,
    gets a mean of all values: masked scores are finite, so that no output is NaN.

    Attributes:
        query_positions: position of each query in its segment.
        key_positions: position of each key in its segment.
        query_segments: segment of each query.
        key_segments: segment of each key.
        query_parents: a second segment that each query sees, its own where it has none; None where no query has one. In
            order, a parent stands before its segments, and between them there is no segment with another parent.
        in_order: queries are the last slots of the keys, and no query sees a slot behind its own.
        grown: in order, of a cache that grows: for inference alone.
        dealt: queries and keys stand in the order in which a sequence is dealt out to so many devices
            (`context.dealt_order`); 1 is from first to last, and `in_order` speaks of the slots put back into it.
    """

    query_positions: Int[Array, "B S"]
    key_positions: Int[Array, "B T"]
    query_segments: Int[Array, "B S"]
    key_segments: Int[Array, "B T"]
    query_parents: Int[Array, "B S"] | None = None
    in_order: bool = flax.struct.field(pytree_node=False, default=False)
    grown: bool = flax.struct.field(pytree_node=False, default=False)
    dealt: int = flax.struct.field(pytree_node=False, default=1)

    def mask(
        self,
        window: int = 0,
        queries: slice = slice(None),
        keys: slice = slice(None),
    ) -> Bool[Array, "B s t"]:
        """True where the query (second axis) sees the key (third axis), which lies in its window.

        `window` is how many positions it sees, itself included, 0 all; `queries` and `keys` take some of them.
        """
        of_query = lambda array: array[:, queries, None]
        of_key = lambda array: array[:, None, keys]
        behind = of_query(self.query_positions) - of_key(self.key_positions)
        same = of_query(self.query_segments) == of_key(self.key_segments)
        if self.query_parents is not None:
            same |= of_query(self.query_parents) == of_key(self.key_segments)
        seen = (behind >= 0) & same
        return seen & (behind < window) if window else seen
