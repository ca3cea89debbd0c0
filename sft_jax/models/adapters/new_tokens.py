"""Embeddings of new tokens, and their columns of the head, trained while the rest of both is frozen.

The arrays are `adapters/new_tokens/embedding` [N, D] and, where the head is a weight of its own,
`adapters/new_tokens/head` [D, N], float32, for N tokens whose ids follow one another from `first` on. For these tokens
they replace what the embedding, the head, or an adapter beside either gives, so that no gradient of the whole embedding
is formed.

Dimensions: N new tokens, D model, V vocabulary.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

NAME = "new_tokens"


def init(params: dict, new_token_ids: range) -> dict[str, Array]:
    """The numbers that the embedding and the head have for the new tokens, float32.

    Args:
        params: parameters; `embedding` [V, D] is read, and `head` [D, V] where there is one.
        new_token_ids: ids of the new tokens.
    """
    new = slice(new_token_ids.start, new_token_ids.stop)
    made = {"embedding": params["embedding"][new].astype(jnp.float32)}
    if "head" in params:
        made["head"] = params["head"][:, new].astype(jnp.float32)
    return made


def look_up(
    embedded: Float[Array, "B S D"], tokens: Int[Array, "B S"], own: Float[Array, "N D"], first: int
) -> Float[Array, "B S D"]:
    """The embedded tokens, float32, with those of new tokens replaced by `own`."""
    looked_up = jnp.take(own, tokens - first, axis=0, mode="clip")
    return jnp.where(_is_new(tokens, own.shape[0], first)[:, :, None], looked_up, embedded.astype(own.dtype))


def in_logits(logits: Float[Array, "B S V"], own: Float[Array, "B S N"], first: int) -> Float[Array, "B S V"]:
    """The logits, with those of the new tokens replaced by their own."""
    vocabulary, count = logits.shape[-1], own.shape[-1]
    # Padded and selected: written into a slice, logits that are split over the vocabulary would be gathered first.
    placed = jnp.pad(own, ((0, 0), (0, 0), (first, vocabulary - first - count)))
    return jnp.where(_is_new(jnp.arange(vocabulary), count, first)[None, None], placed.astype(logits.dtype), logits)


def merge(name: str, weight: Float[Array, "..."], own: Float[Array, "..."], first: int) -> Float[Array, "..."]:
    """`weight`, the embedding [V, D] or the head [D, V] as `name` says, with `own` written into it; keeps its dtype."""
    axis = {"embedding": 0, "head": 1}[name]
    return jax.lax.dynamic_update_slice_in_dim(weight, own.astype(weight.dtype), first, axis)


def _is_new(ids: Int[Array, "*B"], count: int, first: int) -> Bool[Array, "*B"]:
    return (ids >= first) & (ids < first + count)
