"""The decoder: a pure function from tokens to hidden states, and from hidden states to logits.

Dimensions: B batch, S sequence, T keys in view, D model, H heads, K key/value heads, N head dim, F ffn, V vocabulary,
L layers.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sft_jax.models import adapters, per_layer, probes, rope, sharing
from sft_jax.models.adapters import new_tokens
from sft_jax.models.cache import Cache, OfLayer, write
from sft_jax.models.config import AdapterSpec, DecoderConfig, Execution
from sft_jax.models.decoder_layer import Context, Layer, Rotations
from sft_jax.models.experts import ROUTING
from sft_jax.models.layers import Norm, adapted, weight_of
from sft_jax.models.layouts import SCAN, UNROLLED, resolved, spans_in
from sft_jax.models.lookup import look_up
from sft_jax.models.matmul import einsum
from sft_jax.models.partitioning import BATCH_AXES, constrain
from sft_jax.models.remat import saving_policy
from sft_jax.models.variables import SCORE
from sft_jax.models.visibility import Visibility

Tokens = Int[Array | np.ndarray, "B S"]


class PositionEmbedding(nn.Module):
    """A learned vector for each position."""

    config: DecoderConfig
    execution: Execution

    @nn.compact
    def __call__(self, positions: Tokens) -> Float[Array, "B S D"]:
        """The vectors of these positions."""
        shape = (self.config.max_positions, self.config.model_dim)
        table = self.param("embedding", nn.initializers.normal(0.02), shape)
        return look_up(table, positions, self.execution.activation_dtype, weight_of(self, "embedding", shape))


class Period(nn.Module):
    """The layers of one period of a pattern, one after the other.

    Attributes:
        kinds: the config of each (`DecoderConfig.of_layer`).
        execution: how they are executed.
        adapter: what may be beside their kernels.
        repeated: whether the pattern has several periods.
    """

    kinds: tuple[DecoderConfig, ...]
    execution: Execution
    adapter: AdapterSpec | None
    repeated: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        context: Context,
        caches: tuple[OfLayer, ...] | None,
        before: tuple[OfLayer, ...] | None,
        parts: Float[Array, "period B S P"] | None,
    ) -> tuple[Float[Array, "B S D"], tuple[OfLayer | sharing.Given, ...]]:
        """All of them; the caches are theirs, and so are the parts of a second embedding."""
        layer, updated = _layer_class(self.execution, self.repeated), []
        for place, kind in enumerate(self.kinds):
            own = (None if each is None else each[place] for each in (caches, before, parts))
            module = layer(kind, self.execution, self.adapter, name=f"layer_{place}")
            x, returned = module(x, context, *own)
            context = context.replace(shared=sharing.taken(context.shared, returned)[0])
            updated.append(returned)
        return x, tuple(updated)


def _layer_class(execution: Execution, scanned: bool) -> type[nn.Module]:
    """`Layer`, with what its backward pass computes again."""
    if execution.remat == "none":
        return Layer
    # A scan keeps the compiler from merging what is computed again with what was computed first.
    return nn.remat(Layer, policy=saving_policy(execution.remat), prevent_cse=not scanned)


def _scan(block: type[nn.Module], length: int) -> type[nn.Module]:
    """So many blocks one after the other, whose parameters and caches are stacked."""
    return nn.scan(
        block,
        variable_axes={"params": 0, adapters.COLLECTION: 0, probes.COLLECTION: 0, ROUTING: 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast, 0, 0, 0),
        out_axes=0,
        length=length,
    )


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

    @property
    def layout(self) -> str:
        """How its parameters lie (`layouts`)."""
        return resolved(self.execution.layer_layout, self.config)

    def setup(self):
        config, execution = self.config, self.execution
        self.embedding = self.param("embedding", nn.initializers.normal(0.02), (config.vocab_size, config.model_dim))
        if config.learned_positions:
            self.position_embedding = PositionEmbedding(config, execution)
        if config.scores:
            self.score = self.param(SCORE, nn.initializers.zeros, (config.model_dim, 1))
        elif not config.tie_embeddings:
            shape = (config.model_dim, config.vocab_size)
            shape = shape[::-1] if execution.prepared else shape
            self.head_kernel = self.param("head", nn.initializers.lecun_normal(), shape)
        if config.per_layer_dim:
            self.per_layer = per_layer.PerLayerInputs(config, execution, self.adapter)
        self.blocks = self._blocks()
        self.final_norm = Norm(config)

    def _blocks(self) -> tuple[nn.Module, ...]:
        """The modules that a pass goes through one after the other: layers, or scans over them."""
        layout = self.layout
        kinds = [self.config.of_layer(number) for number in range(self.config.num_layers)]
        parts = (self.execution, self.adapter)
        if layout == UNROLLED:
            self.layers = [_layer_class(self.execution, scanned=False)(kind, *parts) for kind in kinds]
            return tuple(self.layers)
        if layout == SCAN:
            self.layers = _scan(_layer_class(self.execution, scanned=len(kinds) > 1), len(kinds))(kinds[0], *parts)
            return (self.layers,)
        for span in spans_in(layout):
            own = tuple(kinds[span.start : span.start + span.period])
            setattr(self, span.name, _scan(Period, span.length)(own, *parts, span.length > 1))
        return tuple(getattr(self, span.name) for span in spans_in(layout))

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
        dealt: int = 1,
        ends: Int[Array | np.ndarray, "B E"] | None = None,
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
            dealt: the tokens stand in the order in which sequences are dealt out to so many devices
                (`context.dealt_order`); 1 is from first to last.
            ends: with a cache, tokens of each row: what layers with a state keep is that of the B E texts up to them,
                one row after the other. By default it is that of the text that each row ends with.

        Raises:
            ValueError: no positions are given, and there are more tokens than learned ones; or there is a cache, and
                rotary frequencies change with the length of a text (`rope.of_length`).
        """
        tokens, positions, segment_ids, parents = jax.tree.map(jnp.asarray, (tokens, positions, segment_ids, parents))
        if positions is None:
            _check_length(self.config, tokens.shape[1])
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens)
        if rotations is None:
            texts = (segment_ids if parents is None else parents) if cache is None else None
            rotations = self.rotations(positions, texts)
        context, cache = self._context(positions, segment_ids, parents, cache, before, rotations, dealt)
        context = context.replace(ends=ends)
        with jax.named_scope("embedding"):
            # Padding may count on beyond the last position: it is masked, but its index must be valid.
            x = self._embedded(tokens, jnp.where(segment_ids > 0, positions, 0))
            x = (x if noise is None else x + noise).astype(self.execution.activation_dtype)
            x = constrain(x, BATCH_AXES, "context", None)
        x, layer_caches = self._through_layers(x, context, cache, before, self._parts(tokens, x))
        if cache is not None:
            length = None if cache.length is None else cache.length + tokens.shape[1]
            cache = cache.replace(layers=layer_caches, length=length)
        with jax.named_scope("final_norm"):
            return self.final_norm(x), cache

    def _parts(self, tokens: Tokens, embedded: Float[Array, "B S D"]) -> tuple[Array | None, ...]:
        """What each block is given of a second embedding, where the model has one."""
        if not self.config.per_layer_dim:
            return (None,) * len(self.blocks)
        with jax.named_scope(per_layer.NAME):
            parts = self.per_layer(tokens, embedded)
        if self.layout == SCAN:
            return (parts,)
        if self.layout == UNROLLED:
            return tuple(parts)
        of_span = lambda span: parts[span.start : span.stop].reshape(span.length, span.period, *parts.shape[1:])
        return tuple(of_span(span) for span in spans_in(self.layout))

    def _through_layers(self, x, context, cache, before, parts):
        """What the layers make of `x`, and their caches with these tokens added."""
        updated = []
        for index, block in enumerate(self.blocks):
            own, own_before = (None if caches is None else caches.layers[index] for caches in (cache, before))
            x, returned = block(x, context, own, own_before, parts[index])
            shared, block_cache = sharing.taken(context.shared, returned, stacked=self.layout != UNROLLED)
            context = context.replace(shared=shared)
            updated.append(block_cache)
        return x, tuple(updated)

    def _embedded(self, tokens: Tokens, positions: Tokens) -> Float[Array, "B S D"]:
        x = self._looked_up(tokens)
        if self.config.embedding_scale != 1.0:
            x = x * jnp.asarray(self.config.embedding_scale, x.dtype)
        if self.config.learned_positions:
            x = x + self.position_embedding(positions)
        return x

    def _looked_up(self, tokens: Tokens) -> Float[Array, "B S D"]:
        arrays = self._adapter_of("embedding")
        x = self._rows("embedding", self.embedding, tokens)

        def matmul(inputs: Array, weight: Array) -> Array:
            if inputs is tokens:
                return self._rows("embedding/a", weight, tokens)
            return self._einsum("bsi,io->bso", inputs, weight)

        if arrays is not None:
            x = adapted(self.adapter, tokens, self.embedding, x, arrays, matmul, None)
        of_new_tokens = self._of_new_tokens()
        if of_new_tokens is None:
            return x
        own = constrain(of_new_tokens["embedding"], None, None)
        return new_tokens.look_up(x, tokens, own, self.adapter.first_new_token)

    def _rows(self, name: str, table: Float[Array, "V D"], tokens: Tokens) -> Float[Array, "B S D"]:
        return look_up(table, tokens, self.execution.activation_dtype, weight_of(self, name, table.shape))

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

    def rotations(self, positions: Tokens, texts: Tokens | None = None) -> Rotations:
        """Cosine and sine by which queries and keys at these positions are rotated, for each of `rope.rotaries`.

        Args:
            positions: of the tokens in their texts.
            texts: number of the text that a token belongs to, where these tokens are all there is of their texts.

        Raises:
            ValueError: frequencies change with the length of a text, and there are no `texts`.
        """
        return tuple(
            rope.rotation(positions, rope.frequencies_of_texts(rotary, positions, texts), rope.magnitude(rotary))
            for rotary in rope.rotaries(self.config)
        )

    def _context(self, positions, segment_ids, parents, cache, before, rotations, dealt):
        rotaries, growth = rope.rotaries(self.config), _query_growth(self.config, positions)
        if cache is None:
            visibility = Visibility(positions, positions, segment_ids, segment_ids, parents, in_order=True, dealt=dealt)
            return Context(rotations, rotaries, visibility, None, growth), None
        cache = cache.replace(
            positions=write(cache.positions, positions, cache.length),
            segments=write(cache.segments, segment_ids, cache.length),
        )
        keys, grown = (cache.positions, cache.segments), cache.length is None
        if before is not None:
            keys = (jnp.concatenate([before.positions, keys[0]], 1), jnp.concatenate([before.segments, keys[1]], 1))
        visibility = Visibility(positions, keys[0], segment_ids, keys[1], parents, grown, grown)
        return Context(rotations, rotaries, visibility, cache.length, growth), cache

    def head(self, hidden: Float[Array, "B S D"]) -> Float[Array, "B S V"]:
        """Float32 logits of hidden states; of a decoder that scores, their scores, with V = 1."""
        if self.config.scores:
            with jax.named_scope("score"):
                return einsum("bsd,dv->bsv", hidden, self.score, "float32", "float32")
        with jax.named_scope("head"):
            if self.config.tie_embeddings:
                logits, spec, name = self._tied_logits(hidden), "bsd,vd->bsv", "embedding"
            else:
                logits, spec, name = self._untied_logits(hidden), "bsd,dv->bsv", "head"
            of_new_tokens = self._of_new_tokens()
            if of_new_tokens is not None:
                own = self._einsum(spec, hidden, of_new_tokens[name])
                logits = new_tokens.in_logits(logits, own, self.adapter.first_new_token)
            if self.config.logit_scale != 1.0:
                logits = logits * self.config.logit_scale
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


def _query_growth(config: DecoderConfig, positions: Tokens) -> Float[Array, "B S 1 1"] | None:
    if not config.query_growth:
        return None
    passed = (positions // config.query_growth_positions).astype(jnp.float32)
    return (1.0 + config.query_growth * jnp.log1p(passed))[:, :, None, None]


def _check_length(config: DecoderConfig, length: int) -> None:
    """Checks that there is a learned position for each token, where the model has those."""
    if config.learned_positions and length > config.max_positions:
        raise ValueError(
            f"a sequence has {length} tokens, and the model {config.max_positions} learned positions; give shorter ones"
        )
