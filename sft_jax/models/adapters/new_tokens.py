"""Rows of new tokens, trained beside a frozen embedding and a frozen head, in place of the rows that those have.

The arrays are `adapters/new_tokens/embedding` [N, D] and, where the head is a weight of its own, `adapters/new_tokens/head`
[D, N], float32: the rows of N tokens whose ids follow one another from `first` on. They take the place of what the
embedding, or an adapter beside it, says of these tokens, so that no gradient of the whole embedding is formed.

Dimensions: N new tokens, D model, V vocabulary.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

NAME = "new_tokens"


def init(params: dict, rows: range) -> dict[str, Array]:
    """The rows as the embedding and the head have them, float32.

    Args:
        params: parameters; `embedding` [V, D] is read, and `head` [D, V] where there is one.
        rows: ids of the new tokens.
    """
    made = {"embedding": params["embedding"][rows.start : rows.stop].astype(jnp.float32)}
    if "head" in params:
        made["head"] = params["head"][:, rows.start : rows.stop].astype(jnp.float32)
    return made


def look_up(
    embedded: Float[Array, "B S D"], tokens: Int[Array, "B S"], rows: Float[Array, "N D"], first: int
) -> Float[Array, "B S D"]:
    """What was looked up, float32, with the row of its own for each new token."""
    own = jnp.take(rows, tokens - first, axis=0, mode="clip")
    return jnp.where(_is_new(tokens, rows.shape[0], first)[:, :, None], own, embedded.astype(rows.dtype))


def in_logits(logits: Float[Array, "B S V"], own: Float[Array, "B S N"], first: int) -> Float[Array, "B S V"]:
    """The logits, with those of the new tokens replaced by their own."""
    vocabulary, count = logits.shape[-1], own.shape[-1]
    # Padded and selected: written into a slice, logits that are split over the vocabulary would be gathered first.
    placed = jnp.pad(own, ((0, 0), (0, 0), (first, vocabulary - first - count)))
    return jnp.where(_is_new(jnp.arange(vocabulary), count, first)[None, None], placed.astype(logits.dtype), logits)


def merge(name: str, weight: Float[Array, "..."], rows: Float[Array, "..."], first: int) -> Float[Array, "..."]:
    """The embedding [V, D] or the head [D, V], as `name` says, with these rows in it, in its own dtype."""
    axis = {"embedding": 0, "head": 1}[name]
    return jax.lax.dynamic_update_slice_in_dim(weight, rows.astype(weight.dtype), first, axis)


def _is_new(ids: Int[Array, "*B"], count: int, first: int) -> Bool[Array, "*B"]:
    return (ids >= first) & (ids < first + count)
