"""Arithmetic of a step, and peak rates of known devices, for model FLOPs utilisation (MFU)."""

from sft_jax.models.config import DecoderConfig

# Dense bf16 FLOP/s of one device, by jax's device_kind, from the makers' data sheets.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


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
    are trained. Attention is counted over the full length of a sequence, without the causal half (PaLM, Chowdhery et
    al. 2022).

    Args:
        config: the decoder.
        tokens: slots of the batch that go through the layers, padding included.
        targets: slots that go through the head.
        sequence_length: of a sequence, in tokens.
        train_weights: True for full fine-tuning, False where the weights are frozen under adapters.
        base_pass: whether the base predicts the same targets, for a divergence from it: one more forward pass.
    """
    layers, head = config.matmul_params()
    passes = (6 if train_weights else 4) + (2 if base_pass else 0)
    attention = (16 if base_pass else 12) * config.num_layers * config.num_heads * config.head_dim * sequence_length
    return passes * (layers * tokens + head * targets) + attention * tokens


def peak_flops(device_kind: str, devices: int) -> float | None:
    """Peak FLOP/s of `devices` devices; None where the kind is not known."""
    peak = PEAK_FLOPS.get(device_kind)
    return None if peak is None else peak * devices
