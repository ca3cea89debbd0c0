"""What the gated delta rule in chunks computes and holds, by formula, for plans.

Dimensions: C tokens of a chunk, K key heads, H value heads, N key dim, P value dim.
"""

import math

from sft_jax.models.config import DecoderConfig

CHUNK = 64
BACKWARD_PASSES = 3  # of the arithmetic of a forward pass: one that is computed again, and the gradients of two inputs


def flops_of_token(layer: DecoderConfig) -> int:
    """Floating-point operations of a token in the forward pass, between the projections of its layer.

    Products of keys and queries with keys; those that invert the triangular system, two of C x C x C for each doubling
    of its blocks but the first, and its solution; products with the state, three, and of corrections.
    """
    heads, key_dim, value_dim = layer.delta_value_heads, layer.delta_key_dim, layer.delta_value_dim
    of_keys = 4 * CHUNK * key_dim * layer.delta_key_heads
    of_system = 2 * CHUNK * (CHUNK * 2 * int(math.log2(CHUNK) - 1) + key_dim + value_dim)
    return of_keys + heads * (of_system + 6 * key_dim * value_dim + 2 * CHUNK * value_dim)


def floats_of_token(layer: DecoderConfig) -> int:
    """Float32 numbers that a token has at the same time in the backward pass, between the projections of its layer.

    Systems, their inverses, decays and gradients of these; what is solved for; and the states at the ends of chunks.
    Measured for 2,048 tokens and heads of 128: 4,112 a value head, for which this has 4,096.
    """
    widths = layer.delta_key_dim + layer.delta_value_dim
    states = 4 * layer.delta_key_dim * layer.delta_value_dim // CHUNK
    return layer.delta_value_heads * (16 * CHUNK + 8 * widths + states)
