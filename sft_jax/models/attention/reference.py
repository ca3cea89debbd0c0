"""Attention that computes all scores at once: what the other backends are tested against, and what reads a cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sft_jax.models.matmul import einsum
from sft_jax.models.visibility import Visibility


def reference_attention(
    query: Float[Array, "B S H N"],
    pieces: tuple[tuple[Float[Array, "B _ K N"], Float[Array, "B _ K M"]], ...],
    visibility: Visibility,
    window: int,
    matmul_dtype: str,
    scale: float,
    softcap: float,
    sinks: Float[Array, "H"] | None = None,
) -> Float[Array, "B S H M"]:
    """Scaled dot-product attention with grouped key/value heads; softmax in float32.

    Args:
        query: H query heads; head h reads key/value head h // (H / K).
        pieces: keys and values, in one pair of arrays or in several that stand one behind the other.
        visibility: which keys of all pieces each query sees.
        window: positions that a query sees, itself included; 0 is all.
        matmul_dtype: dtype of the inputs of the matrix products.
        scale: factor on scores.
        softcap: scores x become softcap tanh(x / softcap); 0 leaves them.
        sinks: one more score of each head, with no value; None is none.
    """
    batch, length, heads, head_dim = query.shape
    kv_heads = pieces[0][0].shape[2]
    group = heads // kv_heads
    # Heads first, and the queries of a key head together: a form of the products that CPUs have in bf16.
    queries = query.reshape(batch, length, kv_heads, group, head_dim).transpose(0, 2, 3, 1, 4)
    queries = queries.reshape(batch, kv_heads, group * length, head_dim)
    keys, values = zip(*((jnp.moveaxis(key, 2, 1), jnp.moveaxis(value, 2, 1)) for key, value in pieces), strict=True)
    scores = [einsum("bksn,bktn->bkst", queries, own, matmul_dtype, "float32") for own in keys]
    scores = jnp.concatenate(scores, axis=-1) * scale
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = _masked(scores.reshape(batch, kv_heads, group, length, -1), visibility, window)
    weights = softmax(scores, sinks).reshape(batch, kv_heads, group * length, -1)
    ends = np.cumsum([own.shape[2] for own in values])[:-1]
    mixed = sum(
        einsum("bkst,bktn->bksn", of_piece, own, matmul_dtype, "float32")
        for of_piece, own in zip(jnp.split(weights, ends, axis=-1), values, strict=True)
    ).astype(query.dtype)
    mixed = mixed.reshape(batch, kv_heads, group, length, -1).transpose(0, 3, 1, 2, 4)
    return mixed.reshape(batch, length, heads, -1)


def softmax(scores: Float[Array, "B K G S T"], sinks: Float[Array, "H"] | None) -> Float[Array, "B K G S T"]:
    """The weights of keys; with sinks they sum to less than 1."""
    if sinks is None:
        return jax.nn.softmax(scores, axis=-1)
    sinks = by_group(sinks, scores.shape[1])
    largest = jax.lax.stop_gradient(jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), sinks))
    weights = jnp.exp(scores - largest)
    return weights / (jnp.sum(weights, axis=-1, keepdims=True) + jnp.exp(sinks - largest))


def by_group(sinks: Float[Array, "H"], kv_heads: int) -> Float[Array, "1 K G 1 1"]:
    """Float32 sinks beside the scores of their heads."""
    return sinks.astype(jnp.float32).reshape(1, kv_heads, -1, 1, 1)


@functools.partial(
    jax.checkpoint, static_argnums=2
)  # the mask is made again in the backward pass: it is as large as the scores of a head
def _masked(scores: Float[Array, "B K G S T"], visibility: Visibility, window: int) -> Array:
    """Scores of what is seen; a finite value elsewhere, so that a query that sees nothing gives a finite answer."""
    return jnp.where(visibility.mask(window)[:, None, None], scores, jnp.finfo(jnp.float32).min)
