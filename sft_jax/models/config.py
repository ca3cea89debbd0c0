"""What a decoder is (`DecoderConfig`) and how it is executed (`Execution`).

The first comes from a pretrained checkpoint and decides what the function computes; the second comes from the
experiment config and decides only how fast and in how much memory. Both are frozen and hashable, so that they can be
static fields of a Linen module.
"""

import dataclasses
from typing import Literal

LayerLayout = Literal["scan", "unrolled"]
REMAT_POLICIES = ("none", "full", "dots", "dots_no_batch")
ATTENTION_BACKENDS = ("blocked", "whole")
NORMS = ("rms", "layer")
NORM_PLACEMENTS = ("pre", "post", "both", "parallel")
QK_NORMS = ("none", "head", "flat")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
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


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | DynamicScaling


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and features of a decoder-only transformer.

    Attributes:
        vocab_size: tokens that have an embedding, padding of the vocabulary included.
        num_layers: layers.
        model_dim: width of the residual stream.
        num_heads: query heads.
        num_kv_heads: key/value heads; each is read by num_heads / num_kv_heads query heads.
        head_dim: width of a head, which need not be model_dim / num_heads.
        ffn_dim: inner width of the feed-forward layer, or of each expert.
        norm: `rms`, or `layer` with mean and bias.
        norm_eps: added to the variance.
        norm_offset: added to every norm's scale (Gemma: 1).
        norm_placement: norms before attention and feed-forward (`pre`), on what they give (`post`), `both`; or before
            both, which then read the same input (`parallel`).
        qk_norm: norm of queries and keys before they are rotated: of each `head`, or of all heads together (`flat`).
        rope_theta: base of the rotary frequencies.
        rope_scaling: how they are stretched.
        rope_dim: leading part of a head that is rotated; 0 is all of it.
        rope_layers: for each layer whether it rotates queries and keys; empty is all.
        local_rope_theta: another base, without scaling, for the layers that have a window; 0 is none.
        layer_windows: for each layer how many positions a query sees, itself included; 0 is all. Empty is all 0.
        learned_positions: a learned embedding of each position, in place of rotary embeddings.
        max_positions: positions the model knows.
        tie_embeddings: the head is the embedding.
        embedding_scale: factor on embeddings.
        query_scale: factor on scores; 0 is head_dim ** -0.5.
        attention_softcap: scores are capped softly at this; 0 is not.
        final_softcap: logits likewise.
        qkv_bias: biases of the query, key and value projections.
        out_bias: bias of the projection after attention.
        ffn_bias: biases of the feed-forward projections.
        ffn_gated: down(activation(gate) * up), or down(activation(up)).
        activation: of the feed-forward layer.
        num_experts: gated feed-forward layers of which each token takes some; 0 is one for all tokens.
        experts_per_token: how many it takes.
        normalize_expert_weights: the weights of those taken sum to 1.
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
    norm: str = "rms"
    norm_eps: float = 1e-5
    norm_offset: float = 0.0
    norm_placement: str = "pre"
    qk_norm: str = "none"
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rope_dim: int = 0
    rope_layers: tuple[bool, ...] = ()
    local_rope_theta: float = 0.0
    layer_windows: tuple[int, ...] = ()
    learned_positions: bool = False
    max_positions: int = 2048
    tie_embeddings: bool = False
    embedding_scale: float = 1.0
    query_scale: float = 0.0
    attention_softcap: float = 0.0
    final_softcap: float = 0.0
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False
    ffn_gated: bool = True
    activation: str = "silu"
    num_experts: int = 0
    experts_per_token: int = 0
    normalize_expert_weights: bool = True
    expert_capacity: float = 0.0

    def __post_init__(self):
        for name, allowed in (
            ("norm", NORMS),
            ("norm_placement", NORM_PLACEMENTS),
            ("qk_norm", QK_NORMS),
            ("activation", ACTIVATIONS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}")
        for name in ("rope_layers", "layer_windows"):
            if len(getattr(self, name)) not in (0, self.num_layers):
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {self.num_layers} layers")
        if self.rope_dim % 2 or self.rope_dim > self.head_dim:
            raise ValueError(f"rope_dim={self.rope_dim} must be even and at most head_dim={self.head_dim}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}")
        if self.num_experts and not 1 <= self.experts_per_token <= self.num_experts:
            raise ValueError(
                f"experts_per_token={self.experts_per_token} must lie in 1 … num_experts={self.num_experts}"
            )
        if self.num_experts and (not self.ffn_gated or self.ffn_bias):
            raise ValueError("experts are gated and have no biases: ffn_gated and not ffn_bias")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: rotary embeddings rotate pairs")

    def matmul_params(self) -> tuple[int, int]:
        """Weights that take part in matrix products per token: (in the layers, in the head)."""
        attention = self.model_dim * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        ffn = (3 if self.ffn_gated else 2) * self.model_dim * self.ffn_dim
        if self.num_experts:
            ffn = self.experts_per_token * ffn + self.model_dim * self.num_experts
        return self.num_layers * (attention + ffn), self.vocab_size * self.model_dim


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a decoder is run. None of these fields changes the function beyond rounding.

    Attributes:
        matmul_dtype: dtype of the two inputs of every matrix product; accumulation is always float32.
        activation_dtype: dtype of the residual stream and of what lies between matrix products.
        layer_layout: `scan` over stacked layer parameters (compiles fast) or `unrolled` (one subtree a layer).
        remat: what the backward pass recomputes: `none`, `full` (all of a layer), `dots` (all but matrix products),
            `dots_no_batch` (all but matrix products with weights).
        attention_backend: `blocked` (queries a block at a time; fast and small) or `whole` (all scores at once, the
            reference it is tested against).
        prepared: parameters are as `generation.prepare` lays them out: projections of the same inputs are one, and the
            kernels of the feed-forward part and of the head have their outputs first.
    """

    matmul_dtype: str = "float32"
    activation_dtype: str = "float32"
    layer_layout: LayerLayout = "scan"
    remat: str = "none"
    attention_backend: str = "blocked"
    prepared: bool = False

    def __post_init__(self):
        for name, allowed in (
            ("matmul_dtype", FLOAT_DTYPES),
            ("activation_dtype", FLOAT_DTYPES),
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
