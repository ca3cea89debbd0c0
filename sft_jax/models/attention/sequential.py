"""Attention to a cache that grows, for inference: one block of queries after the other, whose scores share memory.

Blocks of one program that do not depend on one another are given memory each, and together that grows with the square
of the length.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sft_jax.models.attention.blocked import MIN_BLOCK, capped_scores, heads_first, heads_last, read, scaled
from sft_jax.models.attention.reference import softmax
from sft_jax.models.visibility import Visibility


def sequential_attention(
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
    """Scaled dot-product attention whose blocks all see all keys; arguments as of `blocked_attention`."""
    length, kv_heads = query.shape[1], key.shape[2]
    size = min(MIN_BLOCK, length)
    padding = -length % size
    in_blocks = lambda x: jnp.moveaxis(
        jnp.pad(x, [(0, 0), (0, padding), *[(0, 0)] * (x.ndim - 2)]).reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0
    )
    keys, values = heads_first(key), heads_first(value)
    of_queries = (visibility.query_positions, visibility.query_segments, visibility.query_parents)

    def of_block(block: tuple[Array, tuple[Array, Array, Array | None]]) -> Float[Array, "B s H N"]:
        query, (positions, segments, parents) = block
        seen = visibility.replace(query_positions=positions, query_segments=segments, query_parents=parents)
        scores, _ = capped_scores(scaled(query, kv_heads, scale), keys, seen.mask(window), matmul_dtype, softcap)
        return heads_last(read(softmax(scores, sinks), values, matmul_dtype)).astype(query.dtype)

    blocks = jax.lax.map(of_block, (in_blocks(query), jax.tree.map(in_blocks, of_queries)))
    return jnp.moveaxis(blocks, 0, 1).reshape(query.shape[0], -1, *blocks.shape[3:])[:, :length]
