"""Softmax attention over packed sequences: one interface, and a backend for each kind of device."""

import jax
from jaxtyping import Array, Float

from sft_jax.models.attention.blocked import blocked_attention
from sft_jax.models.attention.kept import KEPT
from sft_jax.models.attention.reference import reference_attention
from sft_jax.models.attention.sequential import sequential_attention
from sft_jax.models.context import dealt, natural
from sft_jax.models.visibility import Visibility

__all__ = ["KEPT", "attention"]


def attention(
    query: Float[Array, "B S H N"],
    key: Float[Array, "B T K N"],
    value: Float[Array, "B T K M"],
    visibility: Visibility,
    matmul_dtype: str,
    backend: str = "reference",
    window: int = 0,
    scale: float = 0.0,
    softcap: float = 0.0,
    before: tuple[Float[Array, "B P K N"], Float[Array, "B P K M"]] | None = None,
    sinks: Float[Array, "H"] | None = None,
) -> Float[Array, "B S H M"]:
    """Scaled dot-product attention with grouped key/value heads; softmax in float32.

    Args:
        query: H query heads; head h reads key/value head h // (H / K).
        key: K key heads.
        value: K value heads, of a width of their own.
        visibility: which keys each query sees.
        matmul_dtype: dtype of the inputs of the matrix products.
        backend: one of `ATTENTION_BACKENDS` (`choice.py`). All but `reference` serve where `visibility.in_order`, and
            leave the rest (writing into a cache that has room) to it. What is read into a cache that grows is always
            read in blocks, one after the other.
        window: positions that a query sees, itself included; 0 is all.
        scale: factor on scores; 0 is N ** -0.5.
        softcap: scores x become softcap tanh(x / softcap) (Gemma 2); 0 leaves them.
        before: keys and values in arrays of their own; in `visibility` they stand in front of the others.
        sinks: one more score of each head, which takes its share of the softmax and reads nothing (attention sinks,
            Xiao et al. 2023; learned, as in gpt-oss); None is none.
    """
    scale = scale or query.shape[-1] ** -0.5
    how = (window, matmul_dtype, scale, softcap, sinks)
    if visibility.grown:
        return sequential_attention(query, key, value, visibility, *how)
    if visibility.in_order and backend != "reference":
        return _in_order(query, key, value, visibility, backend, how)
    pieces = ((key, value),) if before is None else (before, (key, value))
    return reference_attention(query, pieces, visibility, *how)


def _in_order(query, key, value, visibility, backend, how):
    """Of queries that see no slot behind their own."""
    if backend != "blocked":
        return _fused(backend)(query, key, value, visibility, *how)
    if visibility.dealt == 1:
        return blocked_attention(query, key, value, visibility, *how)
    parts = visibility.dealt
    query, key, value, visibility = jax.tree.map(lambda x: natural(x, parts), (query, key, value, visibility))
    return dealt(blocked_attention(query, key, value, visibility.replace(dealt=1), *how), parts)


def _fused(backend):
    """The kernel of a backend; those of other devices are not imported."""
    if backend == "splash":
        from sft_jax.models.attention.splash import splash_attention

        return splash_attention
    from sft_jax.models.attention.triton import triton_attention

    return triton_attention
