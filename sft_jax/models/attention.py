"""Attention: who may see whom (`Visibility`), and the one function that applies it."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sft_jax.models.products import einsum


@flax.struct.dataclass
class Visibility:
    """Who may see whom. A query sees a key of its own segment at its own or an earlier position.

    Segment 0 is padding: it sees only padding, so that every query sees at least one key and no row is NaN.
    """

    query_positions: Int[Array, "B S"]
    key_positions: Int[Array, "B T"]
    query_segments: Int[Array, "B S"]
    key_segments: Int[Array, "B T"]

    def mask(self) -> Bool[Array, "B S T"]:
        """True where the query (second axis) sees the key (third axis)."""
        causal = self.query_positions[:, :, None] >= self.key_positions[:, None, :]
        same = self.query_segments[:, :, None] == self.key_segments[:, None, :]
        return causal & same


def attention(
    query: Float[Array, "B S H N"],
    key: Float[Array, "B T K N"],
    value: Float[Array, "B T K N"],
    visibility: Visibility,
    product_dtype: str,
) -> Float[Array, "B S H N"]:
    """Scaled dot-product attention with grouped key/value heads; softmax in float32.

    Args:
        query: H query heads; head h reads key/value head h // (H / K).
        key: K key heads.
        value: K value heads.
        visibility: who may see whom.
        product_dtype: dtype of the inputs of both products.
    """
    batch, length, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    grouped = query.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    scores = einsum("bskgn,btkn->bkgst", grouped, key, product_dtype, "float32") * head_dim**-0.5
    visible = visibility.mask()[:, None, None]
    # A finite value: a query with no visible key must give a finite answer, in the forward and the backward pass.
    scores = jnp.where(visible, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    mixed = einsum("bkgst,btkn->bskgn", weights, value, product_dtype, str(query.dtype))
    return mixed.reshape(batch, length, heads, head_dim)
