"""Bytes that a step moves between a device and its memory, beside what matrix products read and write meanwhile.

An estimate by formula: each step between matrix products (a norm, a rotation, the gate, a sum with the residual stream)
reads its inputs once and writes its result once, as XLA fuses them; its backward pass moves twice that; the optimizer
reads and writes weights and moments once.
"""

import dataclasses

from sft_jax.models.config import DecoderConfig
from sft_jax.models.delta import cost

_FLOAT32 = 4
_LOGITS_PASSES = 4  # written, read for the sum over the vocabulary, read and written as their gradient


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes of a step on each device.

    Attributes:
        layers: of what lies between the matrix products of the layers.
        loss: of the logits.
        optimizer: of weights, moments and gradients in the update.
        weights: of kernels that products read, and of gradients of kernels that they write; this goes on while the
            products are computed.
    """

    layers: float
    loss: float
    optimizer: float
    weights: float


def traffic_of(
    decoder: DecoderConfig,
    *,
    tokens: float,
    targets: float,
    tensor: int = 1,
    remat: bool,
    activation_bytes: int,
    trained: float,
    trained_bytes: int = 4,
    moments: int = 2,
    kernel_passes: int,
    kernels: float,
) -> Traffic:
    """The traffic of a step.

    Args:
        decoder: the decoder.
        tokens: that a device takes through the layers, those of its sequences (under `tensor` it shares them).
        targets: that it takes through the head.
        tensor: devices that share heads, feed-forward width and vocabulary.
        remat: whether the backward pass computes again what lies between the products.
        activation_bytes: of a number between the products.
        trained: weights that a device updates.
        trained_bytes: of one of them, and of each of its moments.
        moments: of a weight.
        kernel_passes: how often a device reads all kernels, or writes gradients of their size: forward, backward, …
        kernels: weights of the layers and the head that it multiplies with, once gathered.
    """
    kinds = (decoder.of_layer(number) for number in range(decoder.num_layers))
    moved = sum(_moved(kind, tensor, activation_bytes) for kind in kinds)
    passes = 4 if remat else 3
    update = trained_bytes * (2 + 2 * moments) + _FLOAT32
    return Traffic(
        layers=tokens * moved * passes,
        loss=targets * _LOGITS_PASSES * _FLOAT32 * decoder.vocab_size / tensor,
        optimizer=trained * update,
        weights=2 * kernels * kernel_passes,
    )


def _moved(layer: DecoderConfig, tensor: int, activation_bytes: int) -> float:
    """Bytes of a token in the forward pass of a layer: two norms and two sums with the residual stream, the gate, and
    rotated queries and keys, or what the delta rule writes and reads between its products."""
    width = (layer.ffn_dim * max(layer.experts_per_token, 1) + layer.shared_ffn_dim) / tensor
    outside = 6 * layer.model_dim + (3 if layer.ffn_gated else 2) * width
    if layer.expert_norms:
        outside += 6 * layer.model_dim
    if layer.per_layer_dim:  # another norm and sum, and the gate
        outside += 3 * layer.model_dim + 3 * layer.per_layer_dim / tensor
    if layer.mixer == "delta":
        convolved = 2 * (2 * layer.delta_key_width + layer.delta_value_width) / tensor
        gated = 3 * layer.delta_value_width / tensor
        return (outside + convolved + gated) * activation_bytes + cost.floats_of_token(layer) / tensor * _FLOAT32
    rotated = (layer.num_heads + (0 if layer.reads_keys else layer.num_kv_heads)) * layer.head_dim / tensor
    gated = 3 * layer.num_heads * layer.head_dim / tensor if layer.attention_gate else 0
    latent = 2 * (layer.query_rank + layer.kv_rank)  # normed
    return (outside + 2 * rotated + gated + latent) * activation_bytes
