"""Multi-head latent attention (DeepSeek-AI 2024, https://arxiv.org/abs/2405.04434, section 2.1).

Keys and values of all heads are made of one narrow vector a token, and so may queries be. Keys have a part beside, one
for all heads, which is rotated, and so have queries, a part in each head. Decoding caches keys and values of every
head, as other attention does, and not the narrow vector that they are made of.

Dimensions as in `decoder`, and M the width of values, R of what is rotated.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sft_jax.models import rope
from sft_jax.models.attention import attention
from sft_jax.models.cache import LayerCache
from sft_jax.models.config import AdapterSpec, DecoderConfig, Execution
from sft_jax.models.layers import Linear, Norm
from sft_jax.models.partitioning import BATCH_AXES, constrain
from sft_jax.models.visibility import Visibility


class LatentAttention(nn.Module):
    """Attention whose keys and values are made of one vector a token."""

    config: DecoderConfig
    execution: Execution
    adapter: AdapterSpec | None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        rotation: tuple[Float[Array, "B S 1 half"], Float[Array, "B S 1 half"]] | None,
        visibility: Visibility,
        write_at: Int[Array, ""] | None,
        cache: LayerCache | None,
        before: LayerCache | None,
    ) -> tuple[Float[Array, "B S D"], LayerCache | None]:
        """Mixes positions.

        Args:
            x: what is read.
            rotation: cosine and sine of every position; None where nothing is rotated.
            visibility: which keys each query sees.
            write_at: slot from which on a cache is written; None where it grows, or there is none.
            cache: older keys and values, to which those of `x` are added.
            before: others in front of these, which are only read.
        """
        config, execution = self.config, self.execution
        query, key, value = self._query(x, rotation), *self._key_value(x, rotation)
        if cache is not None:
            cache = cache.written(key, value, write_at)
            key, value = cache.slots_first()
        mixed = attention(
            query,
            key,
            value,
            visibility,
            execution.matmul_dtype,
            execution.attention_backend,
            window=config.window,
            scale=config.query_scale,
            softcap=config.attention_softcap,
            before=None if before is None else before.slots_first(),
        )
        mixed = mixed.reshape(*x.shape[:2], -1)
        return self._linear("out", config.model_dim, config.out_bias)(mixed), cache

    def _query(self, x: Float[Array, "B S D"], rotation) -> Float[Array, "B S H N"]:
        config = self.config
        width = config.num_heads * config.head_dim
        if config.query_rank:
            narrow = self._normed("query_a_norm", self._linear("query_a", config.query_rank, config.qkv_bias)(x))
            query = self._linear("query_b", width)(narrow)
        else:
            query = self._linear("query", width)(x)
        plain, rotated = jnp.split(self._by_head(query), [config.head_dim - self._rotated], axis=-1)
        return jnp.concatenate([plain, self._rotate(rotated, rotation)], axis=-1)

    def _key_value(self, x: Float[Array, "B S D"], rotation) -> tuple[Float[Array, "B S H N"], Float[Array, "B S H M"]]:
        config = self.config
        plain_dim = config.head_dim - self._rotated
        narrow = self._linear("key_value_a", config.kv_rank + self._rotated, config.qkv_bias)(x)
        narrow, rotated = jnp.split(narrow, [config.kv_rank], axis=-1)
        width = config.num_heads * (plain_dim + config.value_width)
        made = self._by_head(self._linear("key_value_b", width)(self._normed("key_value_a_norm", narrow)))
        plain, value = jnp.split(made, [plain_dim], axis=-1)
        rotated = self._rotate(rotated[:, :, None], rotation)  # one for all heads
        rotated = jnp.broadcast_to(rotated, (*plain.shape[:3], self._rotated))
        return jnp.concatenate([plain, rotated], axis=-1), value

    @property
    def _rotated(self) -> int:
        return self.config.rope_dim or self.config.head_dim

    def _rotate(self, heads: Float[Array, "B S H R"], rotation) -> Float[Array, "B S H R"]:
        return heads if rotation is None else rope.rotate(heads, *rotation, interleaved=self.config.rope_interleaved)

    def _linear(self, name: str, width: int, use_bias: bool = False) -> Linear:
        return Linear(width, use_bias, self.execution, self.adapter, name=name)

    def _normed(self, name: str, narrow: Float[Array, "B S R"]) -> Float[Array, "B S R"]:
        config = dataclasses.replace(self.config, norm="rms", norm_offset=0.0, norm_eps=self.config.latent_norm_eps)
        return Norm(config, name=name)(narrow)

    def _by_head(self, flat: Float[Array, "B S O"]) -> Float[Array, "B S H _"]:
        split = flat.reshape(*flat.shape[:2], self.config.num_heads, -1)
        return constrain(split, BATCH_AXES, "context", "tensor", None)
