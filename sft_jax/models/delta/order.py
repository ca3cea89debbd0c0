"""Which token each token goes on from: what recurrent layers need to know of a packed row.

A token goes on from the one before it in its own segment. The first token of a segment goes on from the last of its
parent, where it has one, or from nothing. A row may go on with what was read before it, `carried`: one segment, of
which no token but the last few are known any more.

A parent stands before its segments, and between them there is no segment of another parent. Padding, segment 0, may
stand anywhere; nothing goes on from it.

Dimensions: B batch, S tokens, Z chunks of C tokens, V states that are carried from chunk to chunk.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@flax.struct.dataclass
class Order:
    """Segments of a row.

    Attributes:
        segments: segment of each token; 0 is padding.
        parents: segment that its segment goes on from, or its own where there is none; None is none for all.
        carried: segment of what was read before; 0 is nothing.
    """

    segments: Int[Array, "B S"]
    parents: Int[Array, "B S"] | None
    carried: Int[Array, "B"]

    def padded(self, length: int) -> "Order":
        """With padding behind, up to so many tokens."""
        behind = ((0, 0), (0, length - self.segments.shape[1]))
        pad = lambda ids: None if ids is None else jnp.pad(ids, behind)
        return self.replace(segments=pad(self.segments), parents=pad(self.parents))

    def _roots(self) -> Bool[Array, "B S"]:
        """Tokens of segments without a parent."""
        seen = self.segments > 0
        return seen if self.parents is None else seen & (self.parents == self.segments)

    def last(self) -> Int[Array, "B T"]:
        """For each token, and behind all, the last token before it that is not padding; -1 is none."""
        return _last_before(self.segments > 0)

    def last_root(self) -> Int[Array, "B T"]:
        """The last of a segment without a parent."""
        return _last_before(self._roots())

    def segment_of(self, tokens: Int[Array, "B E"]) -> Int[Array, "B E"]:
        """The segments of tokens, of which -1 is what was carried."""
        return jnp.where(tokens < 0, self.carried[:, None], _at(self.segments, tokens))

    def predecessors(self) -> Int[Array, "B S"]:
        """The token that each goes on from: -1 is the last of what was carried; -2 is none, as for padding."""
        before, root = self.last()[:, :-1], self.last_root()[:, :-1]
        found = jnp.where(self.segment_of(before) == self.segments, before, -2)
        if self.parents is not None:
            from_parent = self.segment_of(root) == self.parents
            found = jnp.where((found == -2) & from_parent, root, found)
        return jnp.where(self.segments > 0, found, -2)


def _last_before(wanted: Bool[Array, "B S"]) -> Int[Array, "B S+1"]:
    index = jnp.arange(wanted.shape[1], dtype=jnp.int32)[None]
    last = jax.lax.cummax(jnp.where(wanted, index, -1), axis=1)
    return jnp.pad(last, ((0, 0), (1, 0)), constant_values=-1)


def _at(values: Int[Array, "B S"], index: Int[Array, "B E"]) -> Int[Array, "B E"]:
    return jnp.take_along_axis(values, jnp.maximum(index, 0), axis=1)


@flax.struct.dataclass
class Chunks:
    """The order of rows that are cut into chunks, those of all rows one after the other.

    Two states are carried from chunk to chunk where there are parents, that of the last token and that of the last one
    without a parent, which more segments may go on from; else the first alone.

    Attributes:
        path: whether a token, or what it goes on from, stands in the chunk and is not behind: (reads, is read).
        enters: whether a state that is carried into the chunk is one that the token goes on from.
        leaving: the token in the chunk whose state is carried on.
        leaves: whether there is one, or else the state stays.
    """

    path: Bool[Array, "Z C C"]
    enters: Bool[Array, "Z V C"]
    leaving: Int[Array, "Z V"]
    leaves: Bool[Array, "Z V"]


def chunks(order: Order, size: int) -> Chunks:
    """The chunks of rows whose length is a multiple of their size."""
    length = order.segments.shape[1]
    cut = lambda ids: ids.reshape(-1, size)
    segments, lasts = cut(order.segments), [order.last()]
    same, seen = segments[:, :, None] == segments[:, None, :], segments > 0
    enters = [segments == _of_carried(order, lasts[0], size)]
    if order.parents is not None:
        parents, root = cut(order.parents), order.last_root()
        same |= parents[:, :, None] == segments[:, None, :]
        enters.append((parents == _of_carried(order, root, size)) & ~enters[0])
        lasts.append(root)
    path = same & seen[:, :, None] & seen[:, None, :] & jnp.tril(jnp.ones((size, size), bool))[None]
    ends = jnp.stack([last[:, size::size] for last in lasts], axis=-1)
    starts = jnp.arange(0, length, size, dtype=jnp.int32)[None, :, None]
    return Chunks(
        path=path,
        enters=jnp.stack(enters, axis=1) & seen[:, None],
        leaving=jnp.maximum(ends - starts, 0).reshape(-1, len(lasts)),
        leaves=(ends >= starts).reshape(-1, len(lasts)),
    )


def _of_carried(order: Order, last: Int[Array, "B T"], size: int) -> Int[Array, "Z 1"]:
    """The segment of the state that is carried into each chunk, after the last token before it."""
    return order.segment_of(last[:, :-1:size]).reshape(-1, 1)
