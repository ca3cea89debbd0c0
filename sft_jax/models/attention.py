"""Softmax attention over packed sequences, and which keys each query sees in it (`Visibility`)."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sft_jax.models.blocked_attention import blocked_attention
from sft_jax.models.matmul import einsum


@flax.struct.dataclass
class Visibility:
    """Which keys a query sees: those of its own segment, at its own or an earlier position.

    Segment 0 is padding: it sees only padding, so that every query sees at least one key and no output is NaN.

    Attributes:
        query_positions: position of each query in its segment.
        key_positions: position of each key in its segment.
        query_segments: segment of each query.
        key_segments: segment of each key.
        in_order: queries and keys are the same slots, and no query sees a slot behind its own.
    """

    query_positions: Int[Array, "B S"]
    key_positions: Int[Array, "B T"]
    query_segments: Int[Array, "B S"]
    key_segments: Int[Array, "B T"]
    in_order: bool = flax.struct.field(pytree_node=False, default=False)

    def mask(self, window: Int[Array | np.ndarray, ""] | int | None = None) -> Bool[Array, "B S T"]:
        """True where the query (second axis) sees the key (third axis), which lies less than `window` behind it."""
        behind = self.query_positions[:, :, None] - self.key_positions[:, None, :]
        same = self.query_segments[:, :, None] == self.key_segments[:, None, :]
        seen = (behind >= 0) & same
        return seen if window is None else seen & (behind < window)


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
) -> Float[Array, "B S H N"]:
    """Scaled dot-product attention with grouped key/value heads; softmax in float32.

    Args:
        query: H query heads; head h reads key/value head h // (H / K).
        key: K key heads.
        value: K value heads.
        visibility: which keys each query sees.
        matmul_dtype: dtype of the inputs of the matrix products.
        backend: `whole` scores at once, the reference; or `blocked`, which serves where `visibility.in_order`, and
            leaves the rest (reading into a cache) to `whole`.
        window: positions a query sees, itself included; None is all.
        scale: factor on scores; 0 is N ** -0.5.
        softcap: scores x become softcap tanh(x / softcap) (Gemma 2); 0 leaves them.
    """
    mask, scale = visibility.mask(window), scale or query.shape[-1] ** -0.5
    if backend == "blocked" and visibility.in_order:
        return blocked_attention(query, key, value, mask, matmul_dtype, scale, softcap)
    return _whole(query, key, value, mask, matmul_dtype, scale, softcap)


def _whole(query, key, value, mask, matmul_dtype, scale, softcap):
    batch, length, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    grouped = query.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    scores = einsum("bskgn,btkn->bkgst", grouped, key, matmul_dtype, "float32") * scale
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    # A finite value: a query with no visible key must give a finite answer, in the forward and the backward pass.
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    mixed = einsum("bkgst,btkn->bskgn", weights, value, matmul_dtype, str(query.dtype))
    return mixed.reshape(batch, length, heads, head_dim)
