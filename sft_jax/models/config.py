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
PRODUCT_DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1 frequency scaling of rotary embeddings (Llama Team 2024, `rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and features of a decoder-only transformer."""

    vocab_size: int
    num_layers: int
    model_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_dim: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    max_positions: int = 2048
    tie_embeddings: bool = False
    attention_bias: bool = False
    ffn_bias: bool = False

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: rotary embeddings turn pairs")

    def matmul_params(self) -> tuple[int, int]:
        """Weights that take part in matrix products per token: (in the layers, in the head)."""
        attention = self.model_dim * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        ffn = 3 * self.model_dim * self.ffn_dim
        return self.num_layers * (attention + ffn), self.vocab_size * self.model_dim


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a decoder is run. None of these fields changes the function beyond rounding.

    Attributes:
        product_dtype: dtype of the two inputs of every matrix product; accumulation is always float32.
        activation_dtype: dtype of the residual stream and of what lies between products.
        layer_layout: `scan` over stacked layer parameters (compiles fast) or `unrolled` (one subtree a layer).
        remat: what the backward pass recomputes: `none`, `full` (all of a layer), `dots` (all but matrix products),
            `dots_no_batch` (all but products with weights).
        attention_backend: `blocked` (queries a block at a time; fast and small) or `whole` (all scores at once, the
            reference it is tested against).
    """

    product_dtype: str = "float32"
    activation_dtype: str = "float32"
    layer_layout: LayerLayout = "scan"
    remat: str = "none"
    attention_backend: str = "blocked"

    def __post_init__(self):
        for name, allowed in (
            ("product_dtype", PRODUCT_DTYPES),
            ("activation_dtype", PRODUCT_DTYPES),
            ("layer_layout", ("scan", "unrolled")),
            ("remat", REMAT_POLICIES),
            ("attention_backend", ATTENTION_BACKENDS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}")


@dataclasses.dataclass(frozen=True)
class AdapterSpec:
    """Which adapter method the projections apply. Dropout is drawn only where `dropout` is set."""

    method: str
    dropout: bool = False
