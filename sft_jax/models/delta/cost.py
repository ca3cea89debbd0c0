"""What the gated delta rule in chunks computes and holds, by formula, for plans.

Dimensions: C tokens of a chunk, K key heads, H value heads, N key dim, P value dim.
"""

import math

from sft_jax.models.config import DecoderConfig

CHUNK = 64


def flops_of_token(layer: DecoderConfig) -> int:
    """Floating-point operations of a token in the forward pass, between the projections of its layer.

    Products of keys and queries with keys; those that invert the triangular system, and its solution; products with the
    state, three, and of corrections.
    """
    heads, key_dim, value_dim = layer.delta_value_heads, layer.delta_key_dim, layer.delta_value_dim
    of_keys = 4 * CHUNK * key_dim * layer.delta_key_heads
    solution = 2 * CHUNK * (key_dim + value_dim)
    return of_keys + _inverse(layer) + heads * (solution + 6 * key_dim * value_dim + 2 * CHUNK * value_dim)


def backward_flops_of_token(layer: DecoderConfig) -> int:
    """Those of the backward pass: the forward pass again, and the gradients of the two inputs of each product.

    What is read is not computed again, and the gradient of an inverse needs none of the products that have made it.
    """
    read = 2 * layer.delta_value_heads * layer.delta_value_dim * (layer.delta_key_dim + CHUNK)
    return 3 * flops_of_token(layer) - 2 * _inverse(layer) - read


def _inverse(layer: DecoderConfig) -> int:
    """Of the triangular system: two products of C x C x C for each doubling of its blocks but the first."""
    return layer.delta_value_heads * 4 * CHUNK**2 * int(math.log2(CHUNK) - 1)


def floats_of_token(layer: DecoderConfig) -> int:
    """Float32 numbers that a token has at the same time in the backward pass, between the projections of its layer.

    Systems, their inverses, decays and gradients of these; what is solved for; and the states at the ends of chunks.
    Measured for 2,048 tokens and heads of 128: 4,112 a value head, for which this has 4,096.
    """
    widths = layer.delta_key_dim + layer.delta_value_dim
    states = 4 * layer.delta_key_dim * layer.delta_value_dim // CHUNK
    return layer.delta_value_heads * (16 * CHUNK + 8 * widths + states)
