"""Attention computed one block of queries at a time, so that no layer ever holds the whole matrix of scores.

The algorithm is that of FlashAttention (Dao et al. 2022; the backward pass as in Dao 2023, section 2.3) in plain XLA:
the forward pass keeps the output and one log-sum-exp for each query, and the backward pass computes the scores again. A
block of queries skips the keys behind its last slot, so that long sequences cost little more than half.

On CPUs this is 1.6 to 3 times as fast as computing all scores at once, for sequences of 256 to 1024 tokens
(`benchmarks/attention.py`), and its memory grows with the length of a sequence, not with its square: which keys a query
sees is computed a block at a time too.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from sft_jax.models.matmul import contract
from sft_jax.models.visibility import Visibility

MIN_BLOCK, MAX_BLOCKS = 128, 16  # longer sequences get longer blocks: each is a part of the compiled program
KEPT = "blocked_attention"  # name, for remat policies, of what the backward pass needs beside the inputs
_LOWEST = float(np.finfo(np.float32).min)  # finite: exp of (-inf) - (-inf) would be NaN


def blocked_attention(
    query: Float[Array, "B S H N"],
    key: Float[Array, "B T K N"],
    value: Float[Array, "B T K N"],
    visibility: Visibility,
    window: Int[Array | np.ndarray, ""] | int | None,
    matmul_dtype: str,
    scale: float,
    softcap: float = 0.0,
) -> Float[Array, "B S H N"]:
    """Scaled dot-product attention with grouped key/value heads; softmax in float32.

    Args:
        query: H query heads; head h reads key/value head h // (H / K).
        key: K key heads. The queries are those of the last S of the T slots.
        value: K value heads.
        visibility: which keys each query sees, in order: no key behind a query's own slot is read. Every query must
            see at least one.
        window: positions a query sees, itself included; None is all.
        matmul_dtype: dtype of the inputs of the matrix products.
        scale: factor on scores.
        softcap: scores x become softcap tanh(x / softcap); 0 leaves them.
    """
    leaves, structure = jax.tree.flatten((visibility, window))
    return _attention(query, key, value, leaves, structure, matmul_dtype, scale, softcap)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def _attention(query, key, value, leaves, structure, matmul_dtype, scale, softcap):
    return _forward(query, key, value, leaves, structure, matmul_dtype, scale, softcap)[0]


def _forward(query, key, value, leaves, structure, matmul_dtype, scale, softcap):
    visibility, window = jax.tree.unflatten(structure, leaves)
    queries, keys, values = _scaled(query, key.shape[2], scale), _heads_first(key), _heads_first(value)
    mixed, log_sums = [], []
    for start, end, seen in _blocks(query.shape[1], key.shape[1]):
        block, mask = queries[..., start:end, :], visibility.mask(window, slice(start, end), slice(seen))
        scores, _ = _scores(block, keys[:, :, :seen], mask, matmul_dtype, softcap)
        largest = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        mixed.append(_read(weights, values[:, :, :seen], matmul_dtype) / total)
        log_sums.append(largest + jnp.log(total))
    out = _heads_last(jnp.concatenate(mixed, axis=3)).astype(query.dtype)
    out, log_sums = (checkpoint_name(x, KEPT) for x in (out, jnp.concatenate(log_sums, axis=3)))
    return out, (query, key, value, leaves, out, log_sums)


def _backward(structure, matmul_dtype, scale, softcap, residuals, cotangent):
    query, key, value, leaves, out, log_sums = residuals
    visibility, window = jax.tree.unflatten(structure, leaves)
    slots, kv_heads = key.shape[1:3]
    queries, keys, values = _scaled(query, kv_heads, scale), _heads_first(key), _heads_first(value)
    cotangents = _group(cotangent, kv_heads)
    # The sum over keys of weight x its cotangent, from the output alone (Dao 2023, eq. 4).
    deltas = jnp.sum(cotangents * _group(out, kv_heads).astype(jnp.float32), axis=-1, keepdims=True)
    query_gradients, key_gradient, value_gradient = [], 0.0, 0.0
    for start, end, seen in _blocks(query.shape[1], slots):
        block, mask = (..., slice(start, end), slice(None)), visibility.mask(window, slice(start, end), slice(seen))
        scores, slopes = _scores(queries[block], keys[:, :, :seen], mask, matmul_dtype, softcap)
        weights = jnp.exp(scores - log_sums[block])
        weight_cotangents = _compare(cotangents[block], values[:, :, :seen], matmul_dtype)
        score_cotangents = weights * (weight_cotangents - deltas[block]) * slopes
        query_gradients.append(_read(score_cotangents, keys[:, :, :seen], matmul_dtype))
        behind = ((0, 0), (0, 0), (0, slots - seen), (0, 0))
        key_gradient += jnp.pad(_collect(score_cotangents, queries[block], matmul_dtype), behind)
        value_gradient += jnp.pad(_collect(weights, cotangents[block], matmul_dtype), behind)
    query_gradient = _heads_last(jnp.concatenate(query_gradients, axis=3)) * scale
    return (
        query_gradient.astype(query.dtype),
        jnp.moveaxis(key_gradient, 2, 1).astype(key.dtype),
        jnp.moveaxis(value_gradient, 2, 1).astype(value.dtype),
        None,
    )


_attention.defvjp(_forward, _backward)


def sequential_attention(
    query: Float[Array, "B S H N"],
    key: Float[Array, "B T K N"],
    value: Float[Array, "B T K N"],
    visibility: Visibility,
    window: Int[Array | np.ndarray, ""] | int | None,
    matmul_dtype: str,
    scale: float,
    softcap: float = 0.0,
) -> Float[Array, "B S H N"]:
    """The same for inference: blocks are computed one after the other, so that their scores share memory.

    Blocks of one program that do not depend on one another are given memory each, and together that grows with the
    square of the length. Here all blocks see all keys, and have one length; arguments as of `blocked_attention`.
    """
    length, kv_heads = query.shape[1], key.shape[2]
    size = min(MIN_BLOCK, length)
    padding = -length % size
    in_blocks = lambda x: jnp.moveaxis(
        jnp.pad(x, [(0, 0), (0, padding), *[(0, 0)] * (x.ndim - 2)]).reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0
    )
    keys, values = _heads_first(key), _heads_first(value)
    of_queries = (visibility.query_positions, visibility.query_segments, visibility.query_parents)

    def of_block(block: tuple[Array, tuple[Array, Array, Array | None]]) -> Float[Array, "B s H N"]:
        query, (positions, segments, parents) = block
        seen = visibility.replace(query_positions=positions, query_segments=segments, query_parents=parents)
        scores, _ = _scores(_scaled(query, kv_heads, scale), keys, seen.mask(window), matmul_dtype, softcap)
        return _heads_last(_read(jax.nn.softmax(scores, axis=-1), values, matmul_dtype)).astype(query.dtype)

    blocks = jax.lax.map(of_block, (in_blocks(query), jax.tree.map(in_blocks, of_queries)))
    return jnp.moveaxis(blocks, 0, 1).reshape(query.shape[0], -1, *query.shape[2:])[:, :length]


def _blocks(queries: int, slots: int) -> list[tuple[int, int, int]]:
    """(first query, end, keys it sees at most) of each block of queries, which are those of the last slots."""
    size, before = max(MIN_BLOCK, -(-queries // MAX_BLOCKS)), slots - queries
    ends = [(start, min(start + size, queries)) for start in range(0, queries, size)]
    return [(start, end, before + end) for start, end in ends]


def _heads_first(x: Float[Array, "B S K N"]) -> Float[Array, "B K S N"]:
    return jnp.moveaxis(x, 1, 2)


def _scaled(query: Float[Array, "B S H N"], kv_heads: int, scale: float) -> Float[Array, "B K G S N"]:
    return _group(query.astype(jnp.float32) * scale, kv_heads)


def _group(x: Float[Array, "B S H N"], kv_heads: int) -> Float[Array, "B K G S N"]:
    """The G heads that read one key head, together."""
    batch, length, heads, head_dim = x.shape
    return x.reshape(batch, length, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)


def _heads_last(x: Float[Array, "B K G S N"]) -> Float[Array, "B S H N"]:
    batch, kv_heads, group, length, head_dim = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(batch, length, kv_heads * group, head_dim)


def _scores(queries, keys, mask, matmul_dtype, softcap):
    """Scores, and their derivative by what they were before they were capped."""
    scores, slopes = _compare(queries, keys, matmul_dtype), 1.0
    if softcap:
        capped = jnp.tanh(scores / softcap)
        scores, slopes = softcap * capped, 1 - capped**2
    return jnp.where(mask[:, None, None], scores, _LOWEST), slopes


def _compare(queries, keys, matmul_dtype):
    """[B, K, G, s, N] with [B, K, T, N] -> [B, K, G, s, T]."""
    return contract("bksn,bktn->bkst", _fold(queries), keys, matmul_dtype).reshape(*queries.shape[:4], -1)


def _read(weights, values, matmul_dtype):
    """[B, K, G, s, T] with [B, K, T, N] -> [B, K, G, s, N]."""
    return contract("bkst,bktn->bksn", _fold(weights), values, matmul_dtype).reshape(*weights.shape[:4], -1)


def _collect(weights, queries, matmul_dtype):
    """[B, K, G, s, T] with [B, K, G, s, N] -> [B, K, T, N].

    Not folded: over two axes XLA transposes the weights while it writes them; over one it would not, and CPUs have no
    fast matrix product for operands that lie that way.
    """
    return contract("bkgst,bkgsn->bktn", weights, queries, matmul_dtype)


def _fold(x: Array) -> Array:
    """One matrix product a key head, for all queries that read it: [B, K, G, s, …] -> [B, K, G s, …]."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])
