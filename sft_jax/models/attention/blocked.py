"""Attention computed one block of queries at a time, so that no layer ever holds the whole matrix of scores.

The algorithm is that of FlashAttention (Dao et al. 2022; the backward pass as in Dao 2023, section 2.3) in plain XLA:
the forward pass keeps the output and one log-sum-exp for each query, and the backward pass computes the scores again. A
block of queries skips the keys behind its last slot, so that long sequences cost little more than half, and those
before the window of its first.

On CPUs this is 1.6 to 3 times as fast as computing all scores at once, for sequences of 256 to 1024 tokens
(`benchmarks/attention.py`), and its memory grows with the length of a sequence, not with its square: which keys a query
sees is computed a block at a time too.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from sft_jax.models.attention.kept import KEPT
from sft_jax.models.attention.reference import by_group
from sft_jax.models.matmul import contract
from sft_jax.models.visibility import Visibility

MIN_BLOCK, MAX_BLOCKS = 128, 16  # longer sequences get longer blocks: each is a part of the compiled program
_LOWEST = float(np.finfo(np.float32).min)  # finite: exp of (-inf) - (-inf) would be NaN


def blocked_attention(
    query: Float[Array, "B S H N"],
    key: Float[Array, "B T K N"],
    value: Float[Array, "B T K M"],
    visibility: Visibility,
    window: int,
    matmul_dtype: str,
    scale: float,
    softcap: float = 0.0,
    sinks: Float[Array, "H"] | None = None,
) -> Float[Array, "B S H M"]:
    """Scaled dot-product attention with grouped key/value heads; softmax in float32.

    Args:
        query: H query heads; head h reads key/value head h // (H / K).
        key: K key heads. The queries are those of the last S of the T slots.
        value: K value heads, of a width of their own.
        visibility: which keys each query sees, in order: no key behind a query's own slot is read. Every query must
            see at least one.
        window: positions that a query sees, itself included; 0 is all.
        matmul_dtype: dtype of the inputs of the matrix products.
        scale: factor on scores.
        softcap: scores x become softcap tanh(x / softcap); 0 leaves them.
        sinks: one more score of each head, with no value; None is none.
    """
    leaves, structure = jax.tree.flatten(visibility)
    return _attention(query, key, value, sinks, leaves, structure, window, matmul_dtype, scale, softcap)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7, 8, 9))
def _attention(query, key, value, sinks, leaves, structure, window, matmul_dtype, scale, softcap):
    return _forward(query, key, value, sinks, leaves, structure, window, matmul_dtype, scale, softcap)[0]


def _forward(query, key, value, sinks, leaves, structure, window, matmul_dtype, scale, softcap):
    visibility = jax.tree.unflatten(structure, leaves)
    queries, keys, values = scaled(query, key.shape[2], scale), heads_first(key), heads_first(value)
    mixed, log_sums = [], []
    for block, seen in _blocks(query.shape[1], key.shape[1], _reach(visibility, window)):
        mask = visibility.mask(window, block, seen)
        scores, _ = capped_scores(queries[..., block, :], keys[:, :, seen], mask, matmul_dtype, softcap)
        largest = jnp.max(scores, axis=-1, keepdims=True)
        largest = largest if sinks is None else jnp.maximum(largest, by_group(sinks, key.shape[2]))
        weights = jnp.exp(scores - largest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        total = total if sinks is None else total + jnp.exp(by_group(sinks, key.shape[2]) - largest)
        mixed.append(read(weights, values[:, :, seen], matmul_dtype) / total)
        log_sums.append(largest + jnp.log(total))
    out = heads_last(jnp.concatenate(mixed, axis=3)).astype(query.dtype)
    out, log_sums = (checkpoint_name(x, KEPT) for x in (out, jnp.concatenate(log_sums, axis=3)))
    return out, (query, key, value, sinks, leaves, out, log_sums)


def _backward(structure, window, matmul_dtype, scale, softcap, residuals, cotangent):
    query, key, value, sinks, leaves, out, log_sums = residuals
    visibility = jax.tree.unflatten(structure, leaves)
    slots, kv_heads = key.shape[1:3]
    queries, keys, values = scaled(query, kv_heads, scale), heads_first(key), heads_first(value)
    cotangents = _group(cotangent, kv_heads)
    # The sum over keys of weight x its cotangent, from the output alone (Dao 2023, eq. 4).
    deltas = jnp.sum(cotangents * _group(out, kv_heads).astype(jnp.float32), axis=-1, keepdims=True)
    query_gradients, key_gradient, value_gradient = [], 0.0, 0.0
    for rows, seen in _blocks(query.shape[1], slots, _reach(visibility, window)):
        block, mask = (..., rows, slice(None)), visibility.mask(window, rows, seen)
        scores, slopes = capped_scores(queries[block], keys[:, :, seen], mask, matmul_dtype, softcap)
        weights = jnp.exp(scores - log_sums[block])
        weight_cotangents = _compare(cotangents[block], values[:, :, seen], matmul_dtype)
        score_cotangents = weights * (weight_cotangents - deltas[block]) * slopes
        query_gradients.append(read(score_cotangents, keys[:, :, seen], matmul_dtype))
        around = ((0, 0), (0, 0), (seen.start, slots - seen.stop), (0, 0))
        key_gradient += jnp.pad(_collect(score_cotangents, queries[block], matmul_dtype), around)
        value_gradient += jnp.pad(_collect(weights, cotangents[block], matmul_dtype), around)
    query_gradient = heads_last(jnp.concatenate(query_gradients, axis=3)) * scale
    return (
        query_gradient.astype(query.dtype),
        jnp.moveaxis(key_gradient, 2, 1).astype(key.dtype),
        jnp.moveaxis(value_gradient, 2, 1).astype(value.dtype),
        None if sinks is None else _sink_gradient(sinks, log_sums, deltas),
        None,
    )


_attention.defvjp(_forward, _backward)


def _sink_gradient(sinks, log_sums, deltas):
    """A sink is a key whose value is zero: its weight times minus the delta of each query."""
    weights = jnp.exp(by_group(sinks, log_sums.shape[1]) - log_sums)
    return -jnp.sum(weights * deltas, axis=(0, 3, 4)).reshape(sinks.shape).astype(sinks.dtype)


def _reach(visibility: Visibility, window: int) -> int:
    """How many slots back a query sees, its own included; 0 is all. A parent may lie further back than its position."""
    return window if visibility.query_parents is None else 0


def _blocks(queries: int, slots: int, reach: int) -> list[tuple[slice, slice]]:
    """(queries, keys they may see) of each block of queries, which are those of the last slots."""
    size, before = max(MIN_BLOCK, -(-queries // MAX_BLOCKS)), slots - queries
    blocks = [slice(start, min(start + size, queries)) for start in range(0, queries, size)]
    first = lambda block: max(0, before + block.start - reach + 1) if reach else 0
    return [(block, slice(first(block), before + block.stop)) for block in blocks]


def heads_first(x: Float[Array, "B S K N"]) -> Float[Array, "B K S N"]:
    """Keys or values as the products take them."""
    return jnp.moveaxis(x, 1, 2)


def scaled(query: Float[Array, "B S H N"], kv_heads: int, scale: float) -> Float[Array, "B K G S N"]:
    """Float32 queries whose products with keys are scores, the G that read one key head together."""
    return _group(query.astype(jnp.float32) * scale, kv_heads)


def _group(x: Float[Array, "B S H N"], kv_heads: int) -> Float[Array, "B K G S N"]:
    """The G heads that read one key head, together."""
    batch, length, heads, head_dim = x.shape
    return x.reshape(batch, length, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)


def heads_last(x: Float[Array, "B K G S N"]) -> Float[Array, "B S H N"]:
    """Queries, or what they read, as the model has them."""
    batch, kv_heads, group, length, head_dim = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(batch, length, kv_heads * group, head_dim)


def capped_scores(queries, keys, mask, matmul_dtype, softcap):
    """Scores, and their derivative by what they were before they were capped."""
    scores, slopes = _compare(queries, keys, matmul_dtype), 1.0
    if softcap:
        capped = jnp.tanh(scores / softcap)
        scores, slopes = softcap * capped, 1 - capped**2
    return jnp.where(mask[:, None, None], scores, _LOWEST), slopes


def _compare(queries, keys, matmul_dtype):
    """[B, K, G, s, N] with [B, K, T, N] -> [B, K, G, s, T]."""
    return contract("bksn,bktn->bkst", _fold(queries), keys, matmul_dtype).reshape(*queries.shape[:4], -1)


def read(weights, values, matmul_dtype):
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
