"""The collectives of training over `fsdp` and `tensor` by formula, for runs of other codebases that were published.

They are those of any trainer that splits parameters over data-parallel devices (ZeRO-3, Rajbhandari et al. 2020) and
heads, feed-forward width and vocabulary over others (Shoeybi et al. 2019): what `collectives_of` finds in a compiled
program of this codebase is read from that program instead.
"""

from sft_jax.models.config import DecoderConfig
from sft_jax.planning.collectives import Collective
from sft_jax.planning.flops import weights_by_product

_BF16 = 2


def collectives_by_formula(
    decoder: DecoderConfig,
    *,
    fsdp: int,
    tensor: int = 1,
    replica: int = 1,
    tokens: float,
    recomputes: bool,
    gradient_bytes: int = 4,
) -> list[Collective]:
    """The collectives of a step.

    Each layer's kernels are gathered over `fsdp` in the forward pass and again in the backward pass, and their
    gradients reduced and scattered once. Over `tensor`, the results of attention and feed-forward are
    summed once each in the forward pass, the gradients of their inputs once each in the backward pass, and attention's
    results once more where they are computed again.

    Args:
        decoder: the decoder.
        fsdp: devices that parameters and sequences are split over.
        tensor: devices that heads, width and vocabulary are split over.
        replica: groups of devices that hold the same parameters.
        tokens: of the sequences of a device.
        recomputes: whether the backward pass computes layers again, sums over `tensor` included.
        gradient_bytes: of a number of the gradients that are reduced.
    """
    kernels = sum(weights_by_product(decoder).values()) / max(decoder.experts_per_token, 1)
    kernels *= max(decoder.num_experts, 1)
    head = decoder.vocab_size * decoder.model_dim
    found = []
    for name, weights, count in (("layers", kernels / tensor, decoder.num_layers), ("head", head / tensor, 1)):
        in_loop = name == "layers"
        if fsdp > 1:
            found += [
                _collective("all-gather", "fsdp", _BF16 * weights, fsdp, 2 * count, name, in_loop),
                _collective("reduce-scatter", "fsdp", gradient_bytes * weights / fsdp, fsdp, count, name, in_loop),
            ]
        if replica > 1:
            size = gradient_bytes * weights / fsdp
            found.append(_collective("all-reduce", "replica", size, replica, count, name, in_loop))
    if tensor > 1:
        sums = decoder.num_layers * (2 + 2 + recomputes)
        found.append(
            _collective("all-reduce", "tensor", _BF16 * tokens * decoder.model_dim, tensor, sums, "layers", True)
        )
    return found


def _collective(kind: str, axis: str, size: float, group: int, count: int, scope: str, in_loop: bool) -> Collective:
    return Collective(kind, (axis,), "bf16", round(size), group, count, scope, in_loop)
