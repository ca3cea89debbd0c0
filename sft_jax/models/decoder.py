"""The decoder: a pure function from tokens to hidden states, and from hidden states to logits.

Dimensions: B batch, S sequence, T keys in view, D model, H heads, K key/value heads, N head dim, F ffn, V vocabulary,
L layers.
"""

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sft_jax.models import adapters, rope
from sft_jax.models.adapters import new_tokens
from sft_jax.models.attention import attention
from sft_jax.models.blocked_attention import KEPT
from sft_jax.models.cache import Cache, LayerCache, write
from sft_jax.models.config import AdapterSpec, DecoderConfig, Execution
from sft_jax.models.experts import ROUTING, Experts
from sft_jax.models.layers import Linear, Norm, activated, adapted, gated
from sft_jax.models.matmul import einsum
from sft_jax.models.partitioning import BATCH_AXES, constrain
from sft_jax.models.visibility import Visibility

QUERY_KEY_VALUE, GATE_UP = ("query", "key", "value"), ("gate", "up")  # projections of the same inputs

Tokens = Int[Array | np.ndarray, "B S"]
Rotations = tuple[Float[Array, "R B S 1 half"], Float[Array, "R B S 1 half"]]

_REMAT_POLICIES = {
    "full": None,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_saveable, jax.checkpoint_policies.save_only_these_names(KEPT)
    ),
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@flax.struct.dataclass
class LayerValues:
    """In what a layer differs from the others: numbers, so that all layers are one program, scanned or not.

    Attributes:
        window: positions a query sees.
        rope: which of the model's rotations is that of queries and keys.
    """

    window: Int[Array | np.ndarray, "*L"]
    rope: Int[Array | np.ndarray, "*L"]


def layer_values(config: DecoderConfig) -> LayerValues | None:
    """The values of all layers, [L] each; None where the layers do not differ."""
    kinds = rope.layer_kinds(config)
    if not any(config.layer_windows) and len(set(kinds)) == 1:
        return None
    everything = np.iinfo(np.int32).max
    windows = [window or everything for window in config.layer_windows or (0,) * config.num_layers]
    index = [sorted(set(kinds)).index(kind) for kind in kinds]
    return LayerValues(np.asarray(windows, np.int32), np.asarray(index, np.int32))


@flax.struct.dataclass
class Context:
    """What every layer of one forward pass shares; R rotations, one for each kind of layer."""

    cos: Float[Array, "R B S 1 half"]
    sin: Float[Array, "R B S 1 half"]
    visibility: Visibility
    write_at: Int[Array, ""] | None

    def rotation(self, values: LayerValues | None) -> tuple[Float[Array, "B S 1 half"], Float[Array, "B S 1 half"]]:
        """Cosine and sine for a layer."""
        if values is None:
            return self.cos[0], self.sin[0]
        return jnp.take(self.cos, values.rope, axis=0), jnp.take(self.sin, values.rope, axis=0)


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
        values: LayerValues | None,
        cache: LayerCache | None,
        before: LayerCache | None,
    ) -> tuple[Float[Array, "B S D"], LayerCache | None]:
        """Mixes positions; with a cache, keys and values are written at `context.write_at`, and older ones read too.

        Those of `before` are only read.
        """
        config, execution = self.config, self.execution
        query, key, value = self._joined(x) if execution.prepared else self._apart(x)
        query, key = self._normed("query_norm", query), self._normed("key_norm", key)
        if not config.learned_positions:
            cos, sin = context.rotation(values)
            query, key = rope.rotate(query, cos, sin), rope.rotate(key, cos, sin)
        if cache is not None:
            cache = cache.written(key, value, context.write_at)
            key, value = cache.slots_first()
        mixed = attention(
            query,
            key,
            value,
            context.visibility,
            execution.matmul_dtype,
            execution.attention_backend,
            window=None if values is None else values.window,
            scale=config.query_scale,
            softcap=config.attention_softcap,
            before=None if before is None else before.slots_first(),
        )
        mixed = mixed.reshape(*x.shape[:2], config.num_heads * config.head_dim)
        out = Linear(config.model_dim, config.out_bias, execution, self.adapter, name="out")
        return out(mixed), cache

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
        return constrain(split, BATCH_AXES, None, "tensor", None)

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
            inner = gated(gate, up, config.activation)
        else:
            inner = activated(linear("up", config.ffn_dim)(x), config.activation)
        return linear("down", config.model_dim)(constrain(inner, BATCH_AXES, None, "tensor"))


class PositionEmbedding(nn.Module):
    """A learned vector for each position."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, positions: Tokens) -> Float[Array, "B S D"]:
        """The vectors of these positions."""
        shape = (self.config.max_positions, self.config.model_dim)
        return jnp.take(self.param("embedding", nn.initializers.normal(0.02), shape), positions, axis=0)


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
        values: LayerValues | None,
        cache: LayerCache | None,
        before: LayerCache | None,
    ) -> tuple[Float[Array, "B S D"], LayerCache | None]:
        """Attention, then feed-forward; both from the same input where the norms are `parallel`."""
        parts = (self.config, self.execution, self.adapter)
        with jax.named_scope("attention"):
            read = self._before("attention", x)
            mixed, cache = Attention(*parts, name="attention")(read, context, values, cache, before)
            mixed = self._after("attention", mixed)
            between = constrain(x + mixed, BATCH_AXES, None, None)
        with jax.named_scope("ffn"):
            read = self._before("ffn", x if self.config.norm_placement == "parallel" else between)
            if self.config.num_experts:
                added = Experts(*parts, name="experts")(read, context.visibility.query_segments > 0)
            else:
                added = FeedForward(*parts, name="ffn")(read)
            added = self._after("ffn", added)
            return constrain(between + added, BATCH_AXES, None, None), cache

    def _before(self, name: str, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        return x if self.config.norm_placement == "post" else Norm(self.config, name=f"{name}_norm")(x)

    def _after(self, name: str, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        placed = self.config.norm_placement in ("post", "both")
        return Norm(self.config, name=f"{name}_post_norm")(x) if placed else x


class Decoder(nn.Module):
    """A decoder-only transformer.

    Attributes:
        config: what is computed.
        execution: how.
        adapter: adapter method applied in the projections whose path holds arrays in the collection `adapters`.
    """

    config: DecoderConfig
    execution: Execution = Execution()
    adapter: AdapterSpec | None = None

    def setup(self):
        config, execution = self.config, self.execution
        self.embedding = self.param("embedding", nn.initializers.normal(0.02), (config.vocab_size, config.model_dim))
        if config.learned_positions:
            self.position_embedding = PositionEmbedding(config)
        if not config.tie_embeddings:
            shape = (config.model_dim, config.vocab_size)
            shape = shape[::-1] if execution.prepared else shape
            self.head_kernel = self.param("head", nn.initializers.lecun_normal(), shape)
        layer = Layer
        if execution.remat != "none":
            # A scan keeps the compiler from merging what is computed again with what was computed first.
            separate = execution.layer_layout == "unrolled"
            layer = nn.remat(layer, policy=_REMAT_POLICIES[execution.remat], prevent_cse=separate)
        arguments = (config, execution, self.adapter)
        if execution.layer_layout == "scan":
            self.layers = nn.scan(
                layer,
                variable_axes={"params": 0, adapters.COLLECTION: 0, ROUTING: 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(nn.broadcast, 0, 0, 0),
                out_axes=0,
                length=config.num_layers,
            )(*arguments)
        else:
            self.layers = [layer(*arguments) for _ in range(config.num_layers)]
        self.final_norm = Norm(config)

    def hidden(
        self,
        tokens: Tokens,
        positions: Tokens | None = None,
        segment_ids: Tokens | None = None,
        cache: Cache | None = None,
        noise: Float[Array, "B S D"] | None = None,
        parents: Tokens | None = None,
        rotations: Rotations | None = None,
        before: Cache | None = None,
    ) -> tuple[Float[Array, "B S D"], Cache | None]:
        """Hidden states after the final norm, and the cache with these tokens added.

        Args:
            tokens: token ids.
            positions: position of each token in its segment, growing from slot to slot; by default 0, 1, 2, … Those of
                padding may be beyond what the model knows.
            segment_ids: segment (packed example) of each token, 0 for padding; by default each sequence is one segment.
            cache: what earlier calls returned, or `init_cache(…)`.
            noise: added to the embeddings.
            parents: a second segment that each token sees, which stands before its own: that of a beginning that
                several segments share. By default none.
            rotations: those of the positions, where they are known already.
            before: with a cache that has room, another one, in front of it, which is only read.

        Raises:
            ValueError: no positions are given, and there are more tokens than learned ones.
        """
        tokens, positions, segment_ids, parents = jax.tree.map(jnp.asarray, (tokens, positions, segment_ids, parents))
        if positions is None:
            _check_length(self.config, tokens.shape[1])
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens)
        rotations = self.rotations(positions) if rotations is None else rotations
        context, cache = self._context(positions, segment_ids, parents, cache, before, rotations)
        with jax.named_scope("embedding"):
            # Padding may count on beyond the last position: it is masked, but its index must be valid.
            x = self._embedded(tokens, jnp.where(segment_ids > 0, positions, 0))
            x = (x if noise is None else x + noise).astype(self.execution.activation_dtype)
            x = constrain(x, BATCH_AXES, None, None)
        layer_caches, values = None if cache is None else cache.layers, layer_values(self.config)
        layers_before = None if before is None else before.layers
        if self.execution.layer_layout == "scan":
            x, layer_caches = self.layers(x, context, values, layer_caches, layers_before)
        else:
            updated = []
            for index, layer in enumerate(self.layers):
                own = jax.tree.map(lambda numbers, index=index: np.asarray(numbers[index]), values)
                of_layer = lambda caches, index=index: None if caches is None else caches[index]
                x, layer_cache = layer(x, context, own, of_layer(layer_caches), of_layer(layers_before))
                updated.append(layer_cache)
            layer_caches = tuple(updated)
        if cache is not None:
            length = None if cache.length is None else cache.length + tokens.shape[1]
            cache = cache.replace(layers=layer_caches, length=length)
        with jax.named_scope("final_norm"):
            return self.final_norm(x), cache

    def _embedded(self, tokens: Tokens, positions: Tokens) -> Float[Array, "B S D"]:
        x = self._looked_up(tokens)
        if self.config.embedding_scale != 1.0:
            x = x * jnp.asarray(self.config.embedding_scale, x.dtype)
        if self.config.learned_positions:
            x = x + self.position_embedding(positions)
        return x

    def _looked_up(self, tokens: Tokens) -> Float[Array, "B S D"]:
        x, arrays = jnp.take(self.embedding, tokens, axis=0), self._adapter_of("embedding")

        def matmul(inputs: Array, weight: Array) -> Array:
            if inputs is tokens:
                return jnp.take(weight, tokens, axis=0)
            return self._einsum("bsi,io->bso", inputs, weight)

        if arrays is not None:
            x = adapted(self.adapter, tokens, self.embedding, x, arrays, matmul, None)
        of_new_tokens = self._of_new_tokens()
        if of_new_tokens is None:
            return x
        return new_tokens.look_up(x, tokens, of_new_tokens["embedding"], self.adapter.first_new_token)

    def _of_new_tokens(self) -> dict[str, Array] | None:
        """Embeddings of new tokens, and their columns of the head, which are used in place of the frozen ones."""
        if self.adapter is None or self.adapter.first_new_token is None:
            return None
        return self._adapter_of(new_tokens.NAME)

    def _adapter_of(self, name: str) -> dict[str, Array] | None:
        """What an adapter has beside the embedding or the head."""
        if self.adapter is None:
            return None
        return self.variables.get(adapters.COLLECTION, {}).get(name)

    def _einsum(self, spec: str, x: Array, weight: Array) -> Float[Array, "..."]:
        return einsum(spec, x, weight, self.execution.matmul_dtype, "float32")

    def rotations(self, positions: Tokens) -> Rotations:
        """Cosine and sine by which queries and keys at these positions are rotated, for each kind of layer."""
        kinds = sorted(set(rope.layer_kinds(self.config)))
        rotations = [
            rope.rotation(positions, rope.frequencies(self.config, kind), rope.magnitude(self.config, kind))
            for kind in kinds
        ]
        return tuple(jnp.stack(tables) for tables in zip(*rotations, strict=True))

    def _context(self, positions, segment_ids, parents, cache, before, rotations):
        cos, sin = rotations
        if cache is None:
            visibility = Visibility(positions, positions, segment_ids, segment_ids, parents, in_order=True)
            return Context(cos, sin, visibility, None), None
        cache = cache.replace(
            positions=write(cache.positions, positions, cache.length),
            segments=write(cache.segments, segment_ids, cache.length),
        )
        keys, grown = (cache.positions, cache.segments), cache.length is None
        if before is not None:
            keys = (jnp.concatenate([before.positions, keys[0]], 1), jnp.concatenate([before.segments, keys[1]], 1))
        visibility = Visibility(positions, keys[0], segment_ids, keys[1], parents, grown, grown)
        return Context(cos, sin, visibility, cache.length), cache

    def head(self, hidden: Float[Array, "B S D"]) -> Float[Array, "B S V"]:
        """Float32 logits of hidden states."""
        with jax.named_scope("head"):
            if self.config.tie_embeddings:
                logits, spec, name = self._tied_logits(hidden), "bsd,vd->bsv", "embedding"
            else:
                logits, spec, name = self._untied_logits(hidden), "bsd,dv->bsv", "head"
            of_new_tokens = self._of_new_tokens()
            if of_new_tokens is not None:
                own = self._einsum(spec, hidden, of_new_tokens[name])
                logits = new_tokens.in_logits(logits, own, self.adapter.first_new_token)
            cap = self.config.final_softcap
            return cap * jnp.tanh(logits / cap) if cap else logits

    def _tied_logits(self, hidden: Float[Array, "B S D"]) -> Float[Array, "B S V"]:
        """Logits of a head that is the embedding, with what an adapter adds to it.

        No weight is transposed first: its gradient would be a matrix product in a form that XLA has for CPUs in float32
        only.
        """
        matmul = functools.partial(self._einsum, "bsd,vd->bsv")
        logits, arrays = matmul(hidden, self.embedding), self._adapter_of("embedding")
        if arrays is None:
            return logits
        return adapters.get_method(self.adapter.method).apply_transposed(hidden, logits, arrays, matmul)

    def _untied_logits(self, hidden: Float[Array, "B S D"]) -> Float[Array, "B S V"]:
        spec = "bsd,vd->bsv" if self.execution.prepared else "bsd,dv->bsv"
        logits, arrays = self._einsum(spec, hidden, self.head_kernel), self._adapter_of("head")
        if arrays is None:
            return logits
        matmul = functools.partial(self._einsum, "bsi,io->bso")
        return adapted(self.adapter, hidden, self.head_kernel, logits, arrays, matmul, None)

    def __call__(
        self,
        tokens: Tokens,
        positions: Tokens | None = None,
        segment_ids: Tokens | None = None,
    ) -> Float[Array, "B S V"]:
        """Float32 logits of every position; the arguments of `hidden`."""
        return self.head(self.hidden(tokens, positions, segment_ids)[0])


def _check_length(config: DecoderConfig, length: int) -> None:
    """Checks that there is a learned position for each token, where the model has those."""
    if config.learned_positions and length > config.max_positions:
        raise ValueError(
            f"a sequence has {length} tokens, and the model {config.max_positions} learned positions; give shorter ones"
        )
