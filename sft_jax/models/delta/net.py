"""The layer around the gated delta rule, as in Qwen3-Next and Qwen 3.5.

Dimensions: B batch, S sequence, D model, K key heads, H value heads, N key dim, P value dim, W width of the
convolution, E places of a row.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from sft_jax.models.attention.kept import KEPT
from sft_jax.models.cache import DeltaCache
from sft_jax.models.config import AdapterSpec, DecoderConfig, Execution
from sft_jax.models.context import dealt, natural
from sft_jax.models.delta.convolution import convolved, last_inputs
from sft_jax.models.delta.order import Order
from sft_jax.models.delta.placement import on_each_device
from sft_jax.models.delta.recurrence import chunked, normalized, recurrent
from sft_jax.models.layers import Linear, Norm
from sft_jax.models.partitioning import BATCH_AXES, constrain
from sft_jax.models.visibility import Visibility

MIXED = ("query", "key", "value")  # what the convolution goes over, in the order of its channels


class GatedDeltaNet(nn.Module):
    """Queries, keys and values through a short convolution and the gated delta rule; then a norm and a gate.

    State and convolution begin anew with each segment: no document of a packed row sees another.
    """

    config: DecoderConfig
    execution: Execution
    adapter: AdapterSpec | None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        visibility: Visibility,
        cache: DeltaCache | None,
        ends: Int[Array, "B E"] | None = None,
    ) -> tuple[Float[Array, "B S D"], DeltaCache | None]:
        """Mixes positions; with a cache, goes on from the text in it, and gives that of the last token of each row.

        With `ends`, tokens of each row, it gives the cache of B E texts: those that go up to them.
        """
        config = self.config
        heads, width = config.delta_value_heads, config.delta_value_width
        projected = {name: self._linear(name, size)(x) for name, size in self._widths().items()}
        decay, beta = (self._linear(name, heads)(x).astype(jnp.float32) for name in ("decay", "beta"))
        gate = self._linear("output_gate", width)(x)
        in_order = lambda arrays: jax.tree.map(lambda array: natural(array, visibility.dealt), arrays)
        projected, decay, beta = in_order((projected, decay, beta))
        order = _order(*in_order((visibility.query_segments, visibility.query_parents)), cache)
        read, cache = self._mixed(projected, self._log_decay(decay), jax.nn.sigmoid(beta), order, cache, ends)
        read = checkpoint_name(dealt(read.astype(self.execution.activation_dtype), visibility.dealt), KEPT)
        plain = dataclasses.replace(config, norm="rms", norm_offset=0.0)
        gate = gate.reshape(read.shape).astype(jnp.float32)
        gated = (Norm(plain, name="norm")(read) * jax.nn.silu(gate)).astype(read.dtype)
        gated = constrain(gated.reshape(*x.shape[:2], width), BATCH_AXES, "context", "tensor")
        return self._linear("out", config.model_dim)(gated), cache

    def _linear(self, name: str, features: int) -> Linear:
        return Linear(features, False, self.execution, self.adapter, name=name)

    def _widths(self) -> dict[str, int]:
        keys, values = self.config.delta_key_width, self.config.delta_value_width
        return dict(zip(MIXED, (keys, keys, values), strict=True))

    def _log_decay(self, decay: Float[Array, "B S H"]) -> Float[Array, "B S H"]:
        """-exp(A) softplus(decay + bias), as of Mamba 2 (Dao and Gu 2024)."""
        heads = (self.config.delta_value_heads,)
        rate = self.param("a_log", nn.initializers.normal(0.02), heads).astype(jnp.float32)
        bias = self.param("dt_bias", nn.initializers.normal(0.02), heads).astype(jnp.float32)
        return -jnp.exp(rate)[None, None] * jax.nn.softplus(decay + bias[None, None])

    def _mixed(
        self,
        projected: dict[str, Array],
        log_decay: Float[Array, "B S H"],
        beta: Float[Array, "B S H"],
        order: Order,
        cache: DeltaCache | None,
        ends: Int[Array, "B E"] | None,
    ) -> tuple[Float[Array, "B S H P"], DeltaCache | None]:
        query, key, value = self._convolved(projected, order, cache)
        given = (normalized(query, self.config.delta_key_dim**-0.5), normalized(key), value, log_decay, beta)
        if cache is None:
            return on_each_device(chunked, given, order, None, None, self.execution.matmul_dtype)[0], None
        if query.shape[1] == 1 and order.parents is None and ends is None:
            read, state = recurrent(*given, order.segments, cache.state, cache.segment)
        else:
            read, states = on_each_device(chunked, given, order, cache.state, ends, self.execution.matmul_dtype)
            state = states.reshape(-1, *states.shape[2:])
        inputs = last_inputs(jnp.concatenate([projected[name] for name in MIXED], -1), order, cache.inputs, ends)
        segments = order.segment_of(order.last()[:, -1:] if ends is None else ends)
        return read, DeltaCache(state, inputs.reshape(-1, *inputs.shape[2:]), segments.reshape(-1))

    def _convolved(self, projected: dict[str, Array], order: Order, cache: DeltaCache | None) -> list[Array]:
        """Queries, keys and values [B, S, heads, dim]."""
        config, widths = self.config, self._widths()
        kernel = self.param("conv", nn.initializers.lecun_normal(), (config.delta_conv_width, sum(widths.values())))
        heads = (config.delta_key_heads, config.delta_key_heads, config.delta_value_heads)
        start, made = 0, []
        for (name, width), count in zip(widths.items(), heads, strict=True):
            own = slice(start, start + width)
            before = None if cache is None else cache.inputs[..., own]
            mixed = convolved(projected[name], kernel[:, own], order, before)
            made.append(mixed.reshape(*mixed.shape[:2], count, -1))
            start += width
        return made


def _order(segments: Int[Array, "B S"], parents: Int[Array, "B S"] | None, cache: DeltaCache | None) -> Order:
    carried = jnp.zeros(segments.shape[0], jnp.int32) if cache is None else cache.segment
    return Order(segments, parents, carried)
