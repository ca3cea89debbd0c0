"""What a decoder is (`DecoderConfig`) and how it is executed (`Execution`).

The first comes from a pretrained checkpoint and decides what the function computes; the second comes from the
experiment config and decides only how fast and in how much memory. Both are frozen and hashable, so that they can be
static fields of a Linen module.
"""

import dataclasses
from typing import Any, Literal

LayerLayout = Literal["scan", "unrolled"]
REMAT_POLICIES = ("none", "products", "attention_products", "attention", "full")
ATTENTION_BACKENDS = ("blocked", "reference", "splash", "triton")
NORMS = ("rms", "layer")
NORM_PLACEMENTS = ("pre", "post", "both", "parallel")
MIXERS = ("attention", "delta")
QK_NORMS = ("none", "head", "flat")
ROUTER_SCORINGS = ("softmax", "sigmoid")
ACTIVATIONS = ("silu", "gelu", "gelu_sigmoid", "gelu_tanh")
_BY_LAYER = ("rope_layers", "layer_windows", "layer_overrides")  # fields with an entry a layer, or empty
FLOAT_DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """All rotary frequencies divided by `factor` (position interpolation, Chen et al. 2023)."""

    factor: float


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1 frequency scaling of rotary embeddings (Llama Team 2024, `rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al. 2023): frequencies interpolated by how often they rotate, and a factor on cosine and sine."""

    factor: float
    original_max_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True


@dataclasses.dataclass(frozen=True)
class DynamicScaling:
    """Frequencies that change with the length of a text once it exceeds the positions the model knows (dynamic NTK).

    Up to that limit they are the default frequencies. Beyond it they are not implemented: longer texts are refused.
    """

    factor: float


@dataclasses.dataclass(frozen=True)
class FactorScaling:
    """Each rotary frequency divided by a factor of its own, and a factor on cosine and sine."""

    factors: tuple[float, ...]
    attention_factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class LongRopeScaling:
    """LongRoPE (Ding et al. 2024): a text of at most `short_positions` tokens has other frequencies than a longer one.

    Attributes:
        short_factors: what the frequencies of short texts are divided by, one for each pair that is rotated.
        long_factors: those of longer texts, at all positions.
        short_positions: tokens of a text that is short.
        attention_factor: on cosine and sine, in both.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    short_positions: int
    attention_factor: float = 1.0

    def of_length(self, tokens: int) -> FactorScaling:
        """That of texts of so many tokens."""
        factors = self.long_factors if tokens > self.short_positions else self.short_factors
        return FactorScaling(factors, self.attention_factor)


@dataclasses.dataclass(frozen=True)
class ProportionalScaling:
    """The frequencies of a whole head, of which the first pairs have theirs and the others none (Gemma 4).

    Attributes:
        share: of the pairs that rotate.
        factor: what their frequencies are divided by.
    """

    share: float
    factor: float = 1.0


RopeScaling = (
    LinearScaling | Llama3Scaling | YarnScaling | DynamicScaling | FactorScaling | LongRopeScaling | ProportionalScaling
)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and features of a decoder-only transformer.

    Attributes:
        vocab_size: tokens that have an embedding, padding of the vocabulary included.
        num_layers: layers.
        model_dim: width of the residual stream.
        num_heads: query heads.
        num_kv_heads: key/value heads; each is read by num_heads / num_kv_heads query heads.
        head_dim: width of a head of queries and keys, which need not be model_dim / num_heads.
        kv_rank: keys and values are made of a latent vector of so many numbers (multi-head latent attention, `mla`); 0
            is without one. Of `head_dim`, the last `rope_dim` are then what is rotated, one key for all heads.
        value_dim: width of a head of values, with a `kv_rank`; 0 is that of queries and keys.
        query_rank: queries are likewise made of so many numbers; 0 is without.
        latent_norm_eps: added to the variance of these vectors.
        ffn_dim: inner width of the feed-forward layer, or of each expert.
        norm: `rms`, or `layer` with mean and bias.
        norm_eps: added to the variance.
        norm_offset: added to every norm's scale (Gemma: 1).
        mixer: what mixes positions: `attention`, or a gated delta net (`delta`), which has the fields `delta_…` in
            place of those about heads, windows and positions.
        norm_placement: norms before attention and feed-forward (`pre`), on what they give (`post`), `both`; or before
            both, which then read the same input (`parallel`).
        qk_norm: norm of queries and keys before they are rotated: of each `head`, or of all heads together (`flat`).
        value_norm: values are normed in each head, without a scale.
        values_are_keys: values are what the key projection gives, before its norm and rotation.
        gives_keys: later layers with the same window that read keys read those of this one, and its values.
        reads_keys: keys and values are those of the last layer before that gives some to its window; it has no
            projection for them.
        rope_theta: base of the rotary frequencies.
        rope_scaling: how they are stretched.
        rope_dim: leading part of a head that is rotated; 0 is all of it.
        rope_interleaved: pairs that are rotated lie side by side, and not half a rotated part apart.
        rope_layers: for each layer whether it rotates queries and keys; empty is all.
        local_rope_theta: another base, without scaling, for the layers that have a window; 0 is none.
        layer_windows: for each layer how many positions a query sees, itself included; 0 is all. Empty is all 0.
        layer_overrides: for each layer the fields in which it differs from the others, as (name, value) pairs in the
            order of their names; empty is none.
        learned_positions: a learned embedding of each position, in place of rotary embeddings.
        max_positions: positions the model knows.
        tie_embeddings: the head is the embedding.
        scores: in the place of a vocabulary head there is one that makes a number of a hidden state, `score` [D, 1].
        embedding_scale: factor on embeddings.
        query_scale: factor on scores; 0 is head_dim ** -0.5.
        query_growth: a query at position p is multiplied by 1 + query_growth ln(1 + floor(p / query_growth_positions))
            (Llama 4); 0 is not.
        query_growth_positions: positions after which it grows, where it does.
        residual_scale: factor on what attention and feed-forward add.
        layer_scale: what a layer gives, the residual stream included, is multiplied by a number that no run trains.
        logit_scale: factor on logits.
        attention_softcap: scores are capped softly at this; 0 is not.
        attention_gate: what heads read is multiplied by the sigmoid of one more projection of the inputs.
        attention_sinks: each head has one more score, learned, which takes its share of the softmax and reads nothing.
        final_softcap: logits likewise.
        qkv_bias: biases of the query, key and value projections.
        out_bias: bias of the projection after attention.
        ffn_bias: biases of the feed-forward projections, or of those of each expert.
        ffn_gated: down(activation(gate) * up), or down(activation(up)).
        ffn_clamp: gate and up are at most this, and up at least its negative; 0 is no limit.
        up_offset: added to up, after that.
        activation: of the feed-forward layer.
        delta_key_heads: key heads of a gated delta net.
        delta_value_heads: its value heads; each key head is read by delta_value_heads / delta_key_heads of them.
        delta_key_dim: width of one of its key heads.
        delta_value_dim: width of one of its value heads.
        delta_conv_width: tokens that its convolution goes over.
        num_experts: gated feed-forward layers of which each token takes some; 0 is one for all tokens.
        experts_per_token: how many it takes.
        router_bias: a bias of the router.
        router_scoring: the router's scores are the `softmax` of its logits over all experts, or the `sigmoid` of each.
        router_correction: a number for each expert is added to its score when experts are chosen, and not in their
            weights (DeepSeek-AI 2024, https://arxiv.org/abs/2412.19437, section 2.1.2).
        expert_groups: experts lie in so many groups of neighbours, equally large.
        expert_groups_taken: a token takes experts of so many groups, those whose two best experts have the largest sum.
        normalize_expert_weights: the weights of those taken sum to 1.
        expert_weight_scale: factor on the weights of those taken, after that.
        shared_ffn_dim: inner width of a feed-forward layer that every token takes beside its experts; 0 is none.
        expert_norms: what every token takes, and its experts, have norms of their own, beside those around their sum.
        router_scales: the router reads the residual stream, normed and times a learned vector; and the weight of each
            expert has a learned factor.
        per_layer_dim: width of a second embedding of each token, another one for each layer, which is added there
            (`per_layer`); 0 is none.
        shared_gate: that layer is multiplied by the sigmoid of a projection of its inputs to one number.
        expert_capacity: an expert takes at most this many times its even share of a sequence's tokens, and the others
            skip it; 0 is no bound.
    """

    vocab_size: int
    num_layers: int
    model_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_dim: int
    kv_rank: int = 0
    value_dim: int = 0
    query_rank: int = 0
    latent_norm_eps: float = 1e-6
    norm: str = "rms"
    norm_eps: float = 1e-5
    norm_offset: float = 0.0
    mixer: str = "attention"
    norm_placement: str = "pre"
    qk_norm: str = "none"
    value_norm: bool = False
    values_are_keys: bool = False
    gives_keys: bool = False
    reads_keys: bool = False
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rope_dim: int = 0
    rope_interleaved: bool = False
    rope_layers: tuple[bool, ...] = ()
    local_rope_theta: float = 0.0
    layer_windows: tuple[int, ...] = ()
    layer_overrides: tuple[tuple[tuple[str, Any], ...], ...] = ()
    learned_positions: bool = False
    max_positions: int = 2048
    tie_embeddings: bool = False
    scores: bool = False
    embedding_scale: float = 1.0
    query_scale: float = 0.0
    query_growth: float = 0.0
    query_growth_positions: int = 1
    residual_scale: float = 1.0
    layer_scale: bool = False
    logit_scale: float = 1.0
    attention_softcap: float = 0.0
    attention_gate: bool = False
    attention_sinks: bool = False
    final_softcap: float = 0.0
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False
    ffn_gated: bool = True
    ffn_clamp: float = 0.0
    up_offset: float = 0.0
    activation: str = "silu"
    delta_key_heads: int = 0
    delta_value_heads: int = 0
    delta_key_dim: int = 0
    delta_value_dim: int = 0
    delta_conv_width: int = 4
    num_experts: int = 0
    experts_per_token: int = 0
    router_bias: bool = False
    router_scoring: str = "softmax"
    router_correction: bool = False
    expert_groups: int = 1
    expert_groups_taken: int = 1
    normalize_expert_weights: bool = True
    expert_weight_scale: float = 1.0
    shared_ffn_dim: int = 0
    expert_norms: bool = False
    router_scales: bool = False
    per_layer_dim: int = 0
    shared_gate: bool = False
    expert_capacity: float = 0.0

    def __post_init__(self):
        for name, allowed in (
            ("norm", NORMS),
            ("mixer", MIXERS),
            ("norm_placement", NORM_PLACEMENTS),
            ("qk_norm", QK_NORMS),
            ("activation", ACTIVATIONS),
            ("router_scoring", ROUTER_SCORINGS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}")
        for name in _BY_LAYER:
            if len(getattr(self, name)) not in (0, self.num_layers):
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {self.num_layers} layers")
        for overrides in dict.fromkeys(self.layer_overrides):
            self.of_layer(self.layer_overrides.index(overrides))  # which checks what it has
        if self.rope_dim % 2 or self.rope_dim > self.head_dim:
            raise ValueError(f"rope_dim={self.rope_dim} must be even and at most head_dim={self.head_dim}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}")
        if self.num_experts:
            self._check_experts()
        if self.kv_rank:
            self._check_latent()
        elif self.query_rank or self.value_dim or self.rope_interleaved:
            given = {name: getattr(self, name) for name in ("query_rank", "value_dim", "rope_interleaved")}
            listed = ", ".join(f"{name}={value}" for name, value in given.items() if value)
            raise ValueError(f"{listed}: of attention with a kv_rank")
        if (self.ffn_clamp or self.up_offset) and not self.ffn_gated:
            raise ValueError(
                f"ffn_clamp={self.ffn_clamp} and up_offset={self.up_offset} are of a gated layer: ffn_gated"
            )
        if self.mixer == "delta":
            self._check_delta()
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: rotary embeddings rotate pairs")

    def _check_delta(self) -> None:
        sizes = ("delta_key_heads", "delta_value_heads", "delta_key_dim", "delta_value_dim", "delta_conv_width")
        if missing := [name for name in sizes if getattr(self, name) < 1]:
            raise ValueError(f"{', '.join(missing)} must be at least 1, of a gated delta net")
        if self.delta_value_heads % self.delta_key_heads:
            raise ValueError(
                f"delta_value_heads={self.delta_value_heads} must be a multiple of delta_key_heads="
                f"{self.delta_key_heads}"
            )

    def _check_latent(self) -> None:
        if self.num_kv_heads != self.num_heads:
            raise ValueError(f"num_kv_heads={self.num_kv_heads} must be num_heads={self.num_heads}, with a kv_rank")
        left_out = {
            "qk_norm": "none",
            "attention_gate": False,
            "attention_sinks": False,
            "query_growth": 0.0,
            "learned_positions": False,
        }
        for name, value in left_out.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name}={getattr(self, name)!r} must be {value!r}, with a kv_rank")

    def _check_experts(self) -> None:
        if not 1 <= self.experts_per_token <= self.num_experts:
            raise ValueError(
                f"experts_per_token={self.experts_per_token} must lie in 1 … num_experts={self.num_experts}"
            )
        if not self.ffn_gated:
            raise ValueError("experts are gated: ffn_gated")
        if self.expert_norms and not self.shared_ffn_dim:
            raise ValueError("expert_norms are of experts beside a shared_ffn_dim")
        if self.shared_gate and not self.shared_ffn_dim:
            raise ValueError("shared_gate is of a layer beside experts: shared_ffn_dim")
        groups, taken = self.expert_groups, self.expert_groups_taken
        if not 1 <= taken <= groups:
            raise ValueError(f"expert_groups_taken={taken} must lie in 1 … expert_groups={groups}")
        if groups == 1:
            return
        if self.num_experts % groups or self.num_experts < 2 * groups:
            raise ValueError(
                f"num_experts={self.num_experts} must be a multiple of expert_groups={groups}, with two experts a group"
            )
        if self.experts_per_token > (offered := taken * self.num_experts // groups):
            raise ValueError(
                f"experts_per_token={self.experts_per_token} must be at most {offered}, the experts of "
                f"expert_groups_taken={taken} groups"
            )

    def of_layer(self, index: int) -> "DecoderConfig":
        """The decoder that has this layer alone: equal layers have equal ones."""
        own = {name: (entries[index],) for name in _BY_LAYER if (entries := getattr(self, name))}
        (overrides,) = own.pop("layer_overrides", ((),))
        return dataclasses.replace(self, num_layers=1, layer_overrides=(), **own, **dict(overrides))

    @property
    def layers_with_experts(self) -> int:
        """How many there are."""
        return sum(self.of_layer(number).num_experts > 0 for number in range(self.num_layers))

    @property
    def delta_key_width(self) -> int:
        """Width of all key heads of a gated delta net, and of its queries."""
        return self.delta_key_heads * self.delta_key_dim

    @property
    def delta_value_width(self) -> int:
        """Width of all its value heads."""
        return self.delta_value_heads * self.delta_value_dim

    @property
    def value_width(self) -> int:
        """Width of a head of values."""
        return self.value_dim or self.head_dim

    @property
    def window(self) -> int:
        """How many positions a query of the first layer sees, itself included; 0 is all."""
        return self.layer_windows[0] if self.layer_windows else 0

    def mixer_weights(self) -> dict[str, int]:
        """Weights of each projection around what mixes positions in the first layer, biases left out."""
        model, heads, kv_heads = self.model_dim, self.num_heads, self.num_kv_heads
        if self.mixer == "delta":
            keys, values = (model * width for width in (self.delta_key_width, self.delta_value_width))
            of_heads = model * self.delta_value_heads
            named = {"query": keys, "key": keys, "value": values, "output_gate": values, "out": values}
            return named | {"decay": of_heads, "beta": of_heads}
        out = {"out": heads * self.value_width * model}
        if not self.kv_rank:
            query, key = model * heads * self.head_dim, model * kv_heads * self.head_dim
            values = {} if self.values_are_keys else {"value": key}
            gate = {"output_gate": query} if self.attention_gate else {}
            return {"query": query} | ({} if self.reads_keys else {"key": key} | values) | out | gate
        rotated = self.rope_dim or self.head_dim
        of_keys = {
            "key_value_a": model * (self.kv_rank + rotated),
            "key_value_b": self.kv_rank * heads * (self.head_dim - rotated + self.value_width),
        }
        query = heads * self.head_dim
        if not self.query_rank:
            return {"query": model * query} | of_keys | out
        return {"query_a": model * self.query_rank, "query_b": self.query_rank * query} | of_keys | out

    def matmul_params(self) -> tuple[int, int]:
        """Weights that take part in matrix products per token: (in the layers, in the head)."""
        layers = (self.of_layer(index) for index in range(self.num_layers))
        of_layers = sum(layer._layer_matmul_params() for layer in layers) + self.per_layer_weights()
        return of_layers, (1 if self.scores else self.vocab_size) * self.model_dim

    def per_layer_weights(self) -> int:
        """Weights of the projection to the second embedding, for all layers together."""
        return self.num_layers * self.model_dim * self.per_layer_dim

    def _layer_matmul_params(self) -> int:
        """Of the first layer."""
        mixer = sum(self.mixer_weights().values())
        ffn = (3 if self.ffn_gated else 2) * self.model_dim * self.ffn_dim
        if self.num_experts:
            shared = self.model_dim * (3 * self.shared_ffn_dim + self.shared_gate)
            ffn = self.experts_per_token * ffn + self.model_dim * self.num_experts + shared
        return mixer + ffn + 2 * self.model_dim * self.per_layer_dim


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a decoder is run. None of these fields changes the function beyond rounding.

    Attributes:
        matmul_dtype: dtype of the two inputs of every matrix product; accumulation is always float32.
        activation_dtype: dtype of the residual stream and of what lies between matrix products.
        product_dtype: dtype in which matrix products give their results, which are then cast to that of activations.
        gradient_dtype: dtype in which gradients of matrices are summed over devices.
        gathers_weights: weights are split as in training (`partitioning.spec_of`), and each is gathered for its
            product, in the matmul dtype; otherwise how they lie is left to the compiler.
        layer_layout: `scan` over stacked layer parameters (compiles fast) or `unrolled` (one subtree a layer).
        remat: what the backward pass computes again: `none` (nothing), `full` (all of a layer), or all but what the
            policy is called by (`remat.SAVED`): `products`, `attention_products`, `attention`.
        attention_backend: `blocked` (queries a block at a time, for CPUs), `splash` (for TPUs), `triton` (for GPUs), or
            `reference` (all scores at once, which the others are tested against); see `models/attention`.
        prepared: parameters are as `generation.prepare` lays them out: projections of the same inputs are one, and the
            kernels of the feed-forward part and of the head have their outputs first.
    """

    matmul_dtype: str = "float32"
    activation_dtype: str = "float32"
    product_dtype: str = "float32"
    gradient_dtype: str = "float32"
    gathers_weights: bool = False
    layer_layout: LayerLayout = "scan"
    remat: str = "none"
    attention_backend: str = "blocked"
    prepared: bool = False

    def __post_init__(self):
        for name, allowed in (
            ("matmul_dtype", FLOAT_DTYPES),
            ("activation_dtype", FLOAT_DTYPES),
            ("product_dtype", FLOAT_DTYPES),
            ("gradient_dtype", FLOAT_DTYPES),
            ("layer_layout", ("scan", "unrolled")),
            ("remat", REMAT_POLICIES),
            ("attention_backend", ATTENTION_BACKENDS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}")


@dataclasses.dataclass(frozen=True)
class AdapterSpec:
    """What is applied beside frozen weights.

    Attributes:
        method: adapter method of the projections; `none` where only new tokens are trained.
        dropout: whether adapter dropout is drawn.
        first_new_token: id of the first new token, where the embeddings of new tokens are trained beside the frozen
            embedding; None where none are.
    """

    method: str
    dropout: bool = False
    first_new_token: int | None = None

    def __str__(self) -> str:
        parts = [] if self.method == "none" else [f"{self.method} adapter"]
        return " with ".join(parts + ([] if self.first_new_token is None else ["embeddings of new tokens"]))
