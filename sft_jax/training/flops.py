"""Arithmetic that a step needs, for model FLOPs utilisation (MFU)."""

from sft_jax.models.config import DecoderConfig


def train_flops(
    config: DecoderConfig,
    tokens: int,
    targets: int,
    sequence_length: int,
    *,
    train_weights: bool,
    base_pass: bool = False,
) -> float:
    """Floating-point operations that one optimizer step needs, recomputation left out (as MFU is defined).

    Forward and input gradient cost 2 operations each per weight and token; the weight gradient 2 more where the weights
    are trained. Attention is counted over the full length of a sequence, or of a layer's window, without the causal
    half (PaLM, Chowdhery et al. 2022), and the delta rule as it is token by token.

    Args:
        config: the decoder.
        tokens: slots of the batch that go through the layers, padding included.
        targets: slots that go through the head.
        sequence_length: of a sequence, in tokens.
        train_weights: True for full fine-tuning, False where the weights are frozen under adapters.
        base_pass: whether the base predicts the same targets, for a divergence from it: one more forward pass.
    """
    layers, head = config.matmul_params()
    passes = 6 if train_weights else 4
    mixing = 3 * _all_mixing_flops(config, sequence_length)
    step = passes * (layers * tokens + head * targets) + mixing * tokens
    return step + (forward_flops(config, tokens, targets, sequence_length) if base_pass else 0)


def forward_flops(config: DecoderConfig, tokens: int, targets: int, sequence_length: int) -> float:
    """Those of one forward pass, as of a teacher; arguments as of `train_flops`."""
    layers, head = config.matmul_params()
    return 2 * (layers * tokens + head * targets) + _all_mixing_flops(config, sequence_length) * tokens


def _all_mixing_flops(config: DecoderConfig, sequence_length: int) -> int:
    """`_mixing_flops` of all layers."""
    kinds = (config.of_layer(number) for number in range(config.num_layers))
    return sum(_mixing_flops(kind, sequence_length) for kind in kinds)


def _mixing_flops(kind: DecoderConfig, sequence_length: int) -> int:
    """Of a token in the forward pass of a layer, between its projections: of scores, or of the update of a state."""
    if kind.mixer == "delta":
        return 6 * kind.delta_value_heads * kind.delta_key_dim * kind.delta_value_dim  # it is read twice, and written
    (window,) = kind.layer_windows or (0,)
    return 2 * kind.num_heads * (kind.head_dim + kind.value_width) * min(window or sequence_length, sequence_length)
