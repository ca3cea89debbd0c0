"""One layer of the decoder: what mixes positions, a feed-forward part, norms around both, the residual stream.

Dimensions as in `decoder`.
"""

import dataclasses

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sft_jax.models import per_layer, rope, sharing
from sft_jax.models.attention import attention
from sft_jax.models.cache import LayerCache, OfLayer
from sft_jax.models.config import AdapterSpec, DecoderConfig, Execution
from sft_jax.models.delta import GatedDeltaNet
from sft_jax.models.experts import Experts
from sft_jax.models.layers import Linear, Norm, activated, gated, unscaled_norm
from sft_jax.models.mla import LatentAttention
from sft_jax.models.partitioning import BATCH_AXES, constrain
from sft_jax.models.variables import OUTPUT_SCALE
from sft_jax.models.visibility import Visibility

QUERY_KEY_VALUE, GATE_UP = ("query", "key", "value"), ("gate", "up")  # projections of the same inputs

Rotation = tuple[Float[Array, "B S 1 _"], Float[Array, "B S 1 _"]]  # layers may rotate heads of unlike widths
Rotations = tuple[Rotation, ...]


@flax.struct.dataclass
class Context:
    """What every layer of one forward pass shares.

    Attributes:
        rotations: cosine and sine of each of `rotaries`.
        rotaries: how the model's layers rotate queries and keys.
        visibility: which keys each query sees.
        write_at: slot from which on a cache is written; None where it grows, or there is none.
        query_growth: factor on each query; None is 1.
        shared: keys and values that layers before give to those that have none of their own.
        ends: tokens of each row after which a state is kept in the cache; None is the last of each.
    """

    rotations: Rotations
    rotaries: tuple[rope.Rotary, ...] = flax.struct.field(pytree_node=False)
    visibility: Visibility
    write_at: Int[Array, ""] | None
    query_growth: Float[Array, "B S 1 1"] | None = None
    shared: sharing.Shared = flax.struct.field(default_factory=dict)
    ends: Int[Array, "B E"] | None = None

    def rotation(self, layer: DecoderConfig) -> Rotation | None:
        """Cosine and sine for a layer; None where it does not rotate."""
        rotary = rope.rotary_of(layer)
        return None if rotary is None else self.rotations[self.rotaries.index(rotary)]


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    config: DecoderConfig
    execution: Execution
    adapter: AdapterSpec | None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        context: Context,
        cache: LayerCache | None,
        before: LayerCache | None,
    ) -> tuple[Float[Array, "B S D"], LayerCache | sharing.Given | None]:
        """Mixes positions; with a cache, keys and values are written at `context.write_at`, and older ones read too.

        Those of `before` are only read.
        """
        config, execution = self.config, self.execution
        query, *own = self._projections(x)
        query = self._rotated(self._normed("query_norm", query), context)
        if context.query_growth is not None:
            query = (query * context.query_growth).astype(query.dtype)
        if own:
            key, value = self._rotated(self._normed("key_norm", own[0]), context), own[1]
            if config.value_norm:
                value = unscaled_norm(value, config.norm_eps)
            if cache is not None:
                cache = cache.written(key, value, context.write_at)
                key, value = cache.slots_first()
            keys = sharing.Keys(key, value, None if before is None else before.slots_first())
        else:
            keys = sharing.keys_for(context.shared, config)
        mixed = attention(
            query,
            keys.key,
            keys.value,
            context.visibility,
            execution.matmul_dtype,
            execution.attention_backend,
            window=config.window,
            scale=config.query_scale,
            softcap=config.attention_softcap,
            before=keys.before,
            sinks=self._sinks(),
        )
        mixed = self._gated(x, mixed.reshape(*x.shape[:2], config.num_heads * config.head_dim))
        out = Linear(config.model_dim, config.out_bias, execution, self.adapter, name="out")
        return out(mixed), sharing.Given(cache, keys, config.window) if config.gives_keys else cache

    def _rotated(self, heads: Float[Array, "B S H N"], context: Context) -> Float[Array, "B S H N"]:
        rotation = context.rotation(self.config)
        return heads if rotation is None else rope.rotate(heads, *rotation)

    def _projections(self, x: Array) -> tuple[Array, ...]:
        """Queries, keys and values; or queries alone, where keys and values are another layer's."""
        heads, kv_heads = self.config.num_heads, self.config.num_kv_heads
        if self.config.reads_keys:
            return (self._projected("query", x, heads),)
        if self.config.values_are_keys:
            key = self._projected("key", x, kv_heads)
            return self._projected("query", x, heads), key, key
        return self._joined(x) if self.execution.prepared else self._apart(x)

    def _gated(self, x: Float[Array, "B S D"], mixed: Float[Array, "B S O"]) -> Float[Array, "B S O"]:
        if not self.config.attention_gate:
            return mixed
        gate = Linear(mixed.shape[-1], self.config.qkv_bias, self.execution, self.adapter, name="output_gate")(x)
        return mixed * jax.nn.sigmoid(gate)

    def _sinks(self) -> Float[Array, "H"] | None:
        if not self.config.attention_sinks:
            return None
        return self.param("sinks", nn.initializers.normal(0.02), (self.config.num_heads,))

    def _apart(self, x: Array) -> tuple[Array, Array, Array]:
        heads, kv_heads = self.config.num_heads, self.config.num_kv_heads
        named = zip(QUERY_KEY_VALUE, (heads, kv_heads, kv_heads), strict=True)
        return tuple(self._projected(name, x, number) for name, number in named)

    def _joined(self, x: Array) -> tuple[Array, Array, Array]:
        heads, kv_heads = self.config.num_heads, self.config.num_kv_heads
        together = self._projected("_".join(QUERY_KEY_VALUE), x, heads + 2 * kv_heads)
        return tuple(jnp.split(together, (heads, heads + kv_heads), axis=2))

    def _projected(self, name: str, x: Array, heads: int) -> Array:
        width = heads * self.config.head_dim
        flat = Linear(width, self.config.qkv_bias, self.execution, self.adapter, name=name)(x)
        split = flat.reshape(*x.shape[:2], heads, self.config.head_dim)
        return constrain(split, BATCH_AXES, "context", "tensor", None)

    def _normed(self, name: str, heads: Float[Array, "B S H N"]) -> Float[Array, "B S H N"]:
        if self.config.qk_norm == "none":
            return heads
        if self.config.qk_norm == "head":
            return Norm(self.config, name=name)(heads)
        return Norm(self.config, name=name)(heads.reshape(*heads.shape[:2], -1)).reshape(heads.shape)


class FeedForward(nn.Module):
    """down(activation(gate(x)) * up(x)) (Shazeer 2020), or without a gate down(activation(up(x)))."""

    config: DecoderConfig
    execution: Execution
    adapter: AdapterSpec | None

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """The result, each position by itself."""
        config = self.config

        def linear(name: str, features: int) -> Linear:
            transposed = self.execution.prepared
            return Linear(features, config.ffn_bias, self.execution, self.adapter, transposed, name=name)

        if config.ffn_gated:
            if self.execution.prepared:
                gate, up = jnp.split(linear("_".join(GATE_UP), 2 * config.ffn_dim)(x), 2, axis=-1)
            else:
                gate, up = (linear(name, config.ffn_dim)(x) for name in GATE_UP)
            inner = gated(gate, up, config)
        else:
            inner = activated(linear("up", config.ffn_dim)(x), config.activation)
        return linear("down", config.model_dim)(constrain(inner, BATCH_AXES, "context", "tensor"))


class Layer(nn.Module):
    """One transformer layer: attention and feed-forward, each added to the residual stream, with norms around them."""

    config: DecoderConfig
    execution: Execution
    adapter: AdapterSpec | None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        context: Context,
        cache: OfLayer,
        before: OfLayer,
        part: Float[Array, "B S P"] | None,
    ) -> tuple[Float[Array, "B S D"], OfLayer | sharing.Given]:
        """Attention, then feed-forward; both from the same input where the norms are `parallel`.

        `part` is that of the layer in a second embedding, where there is one.
        """
        parts = (self.config, self.execution, self.adapter)
        with jax.named_scope("attention"):
            read = self._before("attention", x)
            mixed, cache = self._mixed(read, context, cache, before)
            mixed = self._after("attention", mixed)
            between = constrain(x + self._scaled(mixed), BATCH_AXES, "context", None)
        with jax.named_scope("ffn"):
            read = self._before("ffn", x if self.config.norm_placement == "parallel" else between)
            if self.config.num_experts:
                added = self._of_experts(read, between, context.visibility.query_segments > 0)
            else:
                added = FeedForward(*parts, name="ffn")(read)
            added = self._after("ffn", added)
            x = between + self._scaled(added)
        if part is not None:
            with jax.named_scope(per_layer.NAME):
                x = x + per_layer.PerLayerInput(*parts, name=per_layer.NAME)(x, part)
        if self.config.layer_scale:
            scale = self.param(OUTPUT_SCALE, nn.initializers.ones_init(), (1,))
            x = x * jax.lax.stop_gradient(scale).astype(x.dtype)[None, None]
        return constrain(x, BATCH_AXES, "context", None), cache

    def _of_experts(
        self, read: Float[Array, "B S D"], between: Float[Array, "B S D"], used: Bool[Array, "B S"]
    ) -> Float[Array, "B S D"]:
        """What experts, and what every token takes beside them, make of `read`, the norm of `between`."""
        config, parts = self.config, (self.execution, self.adapter)
        own = Norm(config, name="experts_norm")(between) if config.expert_norms else read
        added = Experts(config, *parts, name="experts")(own, used, between if config.router_scales else None)
        if not config.shared_ffn_dim:
            return added
        shared = self._shared(read)
        if config.expert_norms:
            added = Norm(config, name="experts_post_norm")(added)
            shared = Norm(config, name="shared_post_norm")(shared)
        return added + shared

    def _mixed(self, read, context, cache, before):
        """What mixes positions makes of `read`, and its cache."""
        parts = (self.config, self.execution, self.adapter)
        if self.config.mixer == "delta":
            return GatedDeltaNet(*parts, name="delta")(read, context.visibility, cache, context.ends)
        if self.config.kv_rank:
            where = (context.rotation(self.config), context.visibility, context.write_at)
            return LatentAttention(*parts, name="attention")(read, *where, cache, before)
        return Attention(*parts, name="attention")(read, context, cache, before)

    def _shared(self, read: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """What every token takes beside its experts."""
        config = dataclasses.replace(self.config, ffn_dim=self.config.shared_ffn_dim)
        added = FeedForward(config, self.execution, self.adapter, name="shared")(read)
        if not config.shared_gate:
            return added
        return added * jax.nn.sigmoid(Linear(1, False, self.execution, self.adapter, name="shared_gate")(read))

    def _scaled(self, added: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        return added if self.config.residual_scale == 1.0 else added * self.config.residual_scale

    def _before(self, name: str, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        return x if self.config.norm_placement == "post" else Norm(self.config, name=f"{name}_norm")(x)

    def _after(self, name: str, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        placed = self.config.norm_placement in ("post", "both")
        return Norm(self.config, name=f"{name}_post_norm")(x) if placed else x
