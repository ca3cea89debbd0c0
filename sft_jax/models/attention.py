"""Softmax attention over packed sequences."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sft_jax.models.blocked_attention import blocked_attention, sequential_attention
from sft_jax.models.matmul import einsum
from sft_jax.models.visibility import Visibility


def attention(
    query: Float[Array, "B S H N"],
    key: Float[Array, "B T K N"],
    value: Float[Array, "B T K N"],
    visibility: Visibility,
    matmul_dtype: str,
    backend: str = "whole",
    window: Int[Array | np.ndarray, ""] | int | None = None,
    scale: float = 0.0,
    softcap: float = 0.0,
    before: tuple[Float[Array, "B P K N"], Float[Array, "B P K N"]] | None = None,
) -> Float[Array, "B S H N"]:
    """Scaled dot-product attention with grouped key/value heads; softmax in float32.

    Args:
        query: H query heads; head h reads key/value head h // (H / K).
        key: K key heads.
        value: K value heads.
        visibility: which keys each query sees.
        matmul_dtype: dtype of the inputs of the matrix products.
        backend: `whole` scores at once, the reference; or `blocked`, which serves where `visibility.in_order`, and
            leaves the rest (writing into a cache that has room) to `whole`. What is read into a cache that grows is
            always read in blocks, one after the other.
        window: positions a query sees, itself included; None is all.
        scale: factor on scores; 0 is N ** -0.5.
        softcap: scores x become softcap tanh(x / softcap) (Gemma 2); 0 leaves them.
        before: keys and values in arrays of their own; in `visibility` they stand in front of the others.
    """
    scale = scale or query.shape[-1] ** -0.5
    if visibility.grown:
        return sequential_attention(query, key, value, visibility, window, matmul_dtype, scale, softcap)
    if backend == "blocked" and visibility.in_order:
        return blocked_attention(query, key, value, visibility, window, matmul_dtype, scale, softcap)
    pieces = ((key, value),) if before is None else (before, (key, value))
    return _whole(query, pieces, visibility.mask(window), matmul_dtype, scale, softcap)


def _whole(query, pieces, mask, matmul_dtype, scale, softcap):
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
    # A finite value: a query with no visible key must give a finite answer, in the forward and the backward pass.
    scores = scores.reshape(batch, kv_heads, group, length, -1)
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).reshape(batch, kv_heads, group * length, -1)
    ends = np.cumsum([own.shape[2] for own in values])[:-1]
    mixed = sum(
        einsum("bkst,bktn->bksn", of_piece, own, matmul_dtype, "float32")
        for of_piece, own in zip(jnp.split(weights, ends, axis=-1), values, strict=True)
    ).astype(query.dtype)
    mixed = mixed.reshape(batch, kv_heads, group, length, head_dim).transpose(0, 3, 1, 2, 4)
    return mixed.reshape(batch, length, heads, head_dim)
