"""Arithmetic that a step does, by formula: a compiler counts the body of a scan once and a kernel as nothing."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping

from sft_jax.models.config import DecoderConfig
from sft_jax.models.delta import cost
from sft_jax.models.remat import SAVED
from sft_jax.training.flops import train_flops

SHARED_DOWN = "shared_down"  # of what every token takes beside its experts
ATTENTION = "attention"  # in what is computed again: all of attention between its projections
_FORWARD_PRODUCTS = 2  # of attention: scores, and values weighted by them
BACKWARD_PRODUCTS = 5  # scores again, and the gradients of weights, values, queries and keys (Dao 2023, section 2.3)
_TWICE = 2  # scores and the gradient of weights, by kernels of their own for queries and for keys


@dataclasses.dataclass(frozen=True)
class Kernel:
    """How attention is computed.

    Attributes:
        backward_products: products of the size of the scores in its backward pass.
        block: keys are read in blocks of so many, up to the end of the one that a query lies in.
        in_window: how often the keys in a query's window are read.
        in_all: how often all keys up to a query are.
    """

    backward_products: int = BACKWARD_PRODUCTS
    block: int = 1
    in_window: int = 1
    in_all: int = 0

    def pairs(self, length: int, window: int) -> float:
        """Pairs of a query and a key whose score is computed, in a sequence of so many tokens."""
        read = ((self.in_window, window), (self.in_all, 0))
        return sum(times * attention_pairs(length, reach, self.block) for times, reach in read)


def kernel_of(backend: str, with_parents: bool = False) -> Kernel:
    """That of a backend of attention.

    Args:
        backend: of `Execution.attention_backend`.
        with_parents: whether segments have parents, which may lie anywhere before them: splash reads them apart.
    """
    fused = {"splash": Kernel(BACKWARD_PRODUCTS + _TWICE, 512), "triton": Kernel(BACKWARD_PRODUCTS + _TWICE, 64)}
    kernel = fused.get(backend, Kernel())
    if not with_parents:
        return kernel
    return dataclasses.replace(kernel, in_window=int(backend == "splash"), in_all=1)


@dataclasses.dataclass(frozen=True)
class Work:
    """Floating-point operations of a step, of all devices together.

    Attributes:
        model: what the step needs, as MFU is defined here (`train_flops`).
        products: in products with weights, what is computed again included.
        attention: in attention between its projections, likewise.
        recomputed: the part of both that the backward pass computes again.
        loop: the part of both that is in the layers.
    """

    model: float
    products: float
    attention: float
    recomputed: float
    loop: float

    @property
    def computed(self) -> float:
        """All that the devices compute, for hardware FLOPs utilisation (HFU)."""
        return self.products + self.attention


def weights_by_product(decoder: DecoderConfig) -> dict[str, int]:
    """Weights that a token is multiplied by in a layer: those of the projections, of the experts that it takes."""
    model = decoder.model_dim
    ffn = model * decoder.ffn_dim * max(decoder.experts_per_token, 1)
    weights = decoder.mixer_weights() | {"up": ffn, "down": ffn}
    if decoder.ffn_gated:
        weights["gate"] = ffn
    if decoder.num_experts:
        weights["router"] = model * decoder.num_experts
        weights |= {"shared_gate": model} if decoder.shared_gate else {}
    if decoder.num_experts and decoder.shared_ffn_dim:  # what every token takes beside its experts
        shared = model * decoder.shared_ffn_dim
        weights |= {"gate": weights["gate"] + shared, "up": weights["up"] + shared, SHARED_DOWN: shared}
    for name in ("gate", "out") if decoder.per_layer_dim else ():  # around its part of a second embedding
        weights[name] += model * decoder.per_layer_dim
    return weights


def recomputed_products(decoder: DecoderConfig, remat: str) -> frozenset[str]:
    """What of a layer the backward pass computes again: names of `weights_by_product`, and ATTENTION.

    Args:
        decoder: the decoder.
        remat: `none`, or a policy of `models.remat.SAVED`.
    """
    if remat == "none":
        return frozenset()
    names = {*weights_by_product(decoder), ATTENTION}
    if decoder.norm_placement in ("pre", "parallel"):  # only sums of what is added are read, by the next layer
        names -= {"down"} if not decoder.num_experts else set()  # what experts give is weighted before
        names -= {SHARED_DOWN} if not decoder.shared_gate and not decoder.expert_norms else set()
    saved = SAVED[remat]
    kept = {name for name in names if name in saved or (name == SHARED_DOWN and "down" in saved)}
    if set(SAVED["attention"]) <= set(saved):
        kept.add(ATTENTION)
    return frozenset(names - kept)


def attention_pairs(length: int, window: int = 0, block: int = 1) -> float:
    """Pairs of a query and a key whose score is computed, in a causal sequence.

    Args:
        length: of the sequence, in tokens.
        window: positions a query sees, itself included; 0 is all.
        block: keys are read in blocks of so many, up to the end of the one that the query lies in.
    """
    window = min(window or length, length)
    whole = window * (window + 1) / 2 + (length - window) * window
    return min(whole + length * (block - 1) / 2, float(length) * length)


def work_of(
    decoder: DecoderConfig,
    *,
    sequences: int,
    length: int,
    targets: int,
    remat: str | Iterable[str],
    train_weights: bool,
    base_pass: bool = False,
    head_again: bool = False,
    adapter_weights: int = 0,
    kernel: Kernel = Kernel(),
) -> Work:
    """The arithmetic of a step.

    Attention is counted where it is computed: a causal triangle of each sequence of the batch, or the band of a window;
    examples that share a sequence are masked from one another in it, and not left out. The rule of gated delta nets is
    counted with attention.

    Args:
        decoder: the decoder.
        sequences: of a step, all devices together.
        length: of each, in tokens.
        targets: of a step, that go through the head.
        remat: the policy, or the names of what is computed again (`recomputed_products`).
        train_weights: True for full fine-tuning, False where the weights are frozen.
        base_pass: whether the base predicts the same targets, for a divergence from it: one more forward pass.
        head_again: whether targets go through the head once more, for their gradient (`log_probabilities`).
        adapter_weights: that a token is multiplied by in all layers, beside frozen weights.
        kernel: of attention.
    """
    tokens = sequences * length
    kinds = Counter(decoder.of_layer(number) for number in range(decoder.num_layers))
    again_of = lambda kind: recomputed_products(kind, remat) if isinstance(remat, str) else frozenset(remat)
    weights = weights_again = attention = attention_again = 0.0
    for kind, count in kinds.items():
        again, of_product = again_of(kind), weights_by_product(kind)
        weights += count * sum(of_product.values())
        weights_again += count * sum(of_product[name] for name in (again - {ATTENTION}) & of_product.keys())
        forward, backward = _mixing(kind, sequences, length, kernel)
        attention += count * ((1 + base_pass) * forward + backward)
        attention_again += count * forward * (ATTENTION in again)
    passes = (3 if train_weights else 2) + base_pass
    share_again = weights_again / weights
    products = 2 * tokens * (passes * weights + weights_again)
    adapters = 2 * tokens * adapter_weights * (3 + share_again)
    products_again = 2 * tokens * (weights_again + adapter_weights * share_again)
    attention += attention_again

    _, of_head = decoder.matmul_params()
    head = 2 * (passes + head_again) * targets * of_head
    before = 2 * passes * tokens * decoder.per_layer_weights()
    return Work(
        model=train_flops(decoder, tokens, targets, length, train_weights=train_weights, base_pass=base_pass),
        products=products + adapters + head + before,
        attention=attention,
        recomputed=products_again + attention_again,
        loop=products + adapters + attention,
    )


def _mixing(kind: DecoderConfig, sequences: int, length: int, kernel: Kernel) -> tuple[float, float]:
    """Operations of a layer between its projections: of the forward pass, and of the backward pass."""
    if kind.mixer == "delta":
        tokens = sequences * length
        return tokens * cost.flops_of_token(kind), tokens * cost.backward_flops_of_token(kind)
    pairs = sequences * kernel.pairs(length, kind.window)
    # Of a product of the size of the scores, some over the width of queries and keys, some over that of values.
    scores = pairs * kind.num_heads * (kind.head_dim + kind.value_width)
    return scores * _FORWARD_PRODUCTS, scores * kernel.backward_products


def adapter_weights(decoder: DecoderConfig, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Weights of an adapter's A and B that a token is multiplied by, all layers together.

    Args:
        decoder: the decoder.
        shapes: of the adapter's arrays, by path; of layers one by one or stacked.
    """
    count = 0.0
    for path, shape in shapes.items():
        if path.endswith(("/a", "/b")):
            of_experts = "/experts/" in path and "/router/" not in path
            count += math.prod(shape) * (decoder.experts_per_token / decoder.num_experts if of_experts else 1)
    return round(count)
