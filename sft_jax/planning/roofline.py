"""How long a step takes at most as fast as the hardware allows: an estimate from its arithmetic, bytes and collectives.

What goes on at the same time, and what does not:

- Products read kernels and write results while they are computed: the slower of the two counts.
- What lies between products, the logits and the optimizer's update move bytes with nothing beside them.
- In the layers, kernels are gathered and their gradients reduced (`fsdp`, `expert`, `context`, `replica`) while another
  layer is computed, as XLA's latency-hiding scheduler arranges it: what is left when all layers are computed is
  exposed.
  Collectives of one axis wait for one another; so do those of different axes, which share links.
- Collectives along `tensor` are of activations that the next product waits for, and those outside of the layers have
  nothing to hide behind: exposed.

Attention is taken to be a fused kernel, whose scores stay off the device's memory: with another, a step takes longer
than this, and the report says so.

The shares of the peaks that are reached are published ones, or set by published runs (SHARES), and the same for every
program.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from sft_jax.hardware import Hardware
from sft_jax.planning.collectives import Collective
from sft_jax.planning.flops import Work
from sft_jax.planning.traffic import Traffic
from sft_jax.planning.wiring import route_of, seconds_of

PRODUCTS, ATTENTION, MEMORY = "matrix products", "attention", "memory"


@dataclasses.dataclass(frozen=True)
class Shares:
    """What is reached of a device's peaks.

    Attributes:
        products: of its FLOP/s, in large matrix products.
        attention: of its FLOP/s, in a fused attention kernel, forward and backward together.
        memory: of its memory's bandwidth.
        links: of that of `Hardware.links`.
        network: of `Hardware.network_bandwidth`.
        sustained: of what a device does by these shares, in a training run: products of all shapes one after another,
            at the clock that its power allows, and with collectives beside them.
        hop: seconds that each link of a torus adds to a collective.
    """

    products: float
    attention: float
    memory: float
    links: float
    network: float
    sustained: float
    hop: float = 0.0


# Products on TPUs: the profile of two feed-forward products in Austin et al. 2025 ("How to Scale Your Model", chapter
# on profiling): 95.6 ms at the peak, 96 ms measured; 0.95 here, as shapes vary. Links: its reduce-scatter, 1.1 ms by
# the bandwidth, 1.13 ms measured; a hop: about 1 us (chapter on sharding). Memory: a sum of two arrays on an H100, 3.84
# ms by the bandwidth, 4.1 ms measured (chapter on GPUs). No such figure is published for TPUs, and none of attention:
# 0.6 is within what FlashAttention-2 reaches on the GPU it was written for (0.5 to 0.73 of an A100, Dao 2023). Matrix
# units of 256 x 256 are half used by heads of 128. The network: assumed.
# Sustained: what makes the estimate right, on average, for MaxText's models of 16, 32 and 64 billion weights on 256 v5e
# (tests/planning/test_published.py has these runs, and those that it then predicts).
_TPU = Shares(products=0.95, attention=0.6, memory=0.94, links=0.97, network=0.8, sustained=0.84, hop=1e-6)
_TPU_WIDE = dataclasses.replace(_TPU, attention=0.3)
# Products on GPUs: Bekman, "Machine Learning Engineering", table of maximum achievable matmul FLOPS: A100 0.859, H100
# 0.803, B200 0.776. Attention: FlashAttention-2 reaches 0.5 to 0.73 on an A100 and 0.35 on an H100 (Shah et al.
# 2024). Links: 370 of 450 GB/s (Austin et al., chapter on GPUs). The network: assumed, as for NVLink.
# Sustained: as above, for torchtitan's four FSDP runs of Llama on 64 A100 (its docs/performance.md).
_A100 = Shares(products=0.859, attention=0.6, memory=0.94, links=0.82, network=0.82, sustained=0.74)
_HOPPER = dataclasses.replace(_A100, products=0.803, attention=0.35)
_BLACKWELL = dataclasses.replace(_A100, products=0.776, attention=0.35)
SHARES = {
    "v4": _TPU,
    "v5e": _TPU,
    "v5p": _TPU,
    "v6e": _TPU_WIDE,
    "tpu7x": _TPU_WIDE,
    "a100-40gb": _A100,
    "a100-80gb": _A100,
    "h100": _HOPPER,
    "h200": _HOPPER,
    "b200": _BLACKWELL,
}


@dataclasses.dataclass(frozen=True)
class Exchange:
    """The collectives over the same axes.

    Attributes:
        axes: of the mesh.
        seconds: of all of them in a step.
        exposed: the part of that in which nothing is computed.
    """

    axes: tuple[str, ...]
    seconds: float
    exposed: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a step would take.

    Attributes:
        products: seconds of products with weights.
        attention: seconds of attention between its projections.
        memory: seconds of what moves bytes alone.
        exchanges: collectives by axes, those that take the most first.
        work: the arithmetic it is made of.
        peak: FLOP/s of all devices.
        devices: how many.
        tokens: of a step.
    """

    products: float
    attention: float
    memory: float
    exchanges: tuple[Exchange, ...]
    work: Work
    peak: float
    devices: int
    tokens: int

    @property
    def exposed(self) -> float:
        """Seconds of collectives in which nothing is computed."""
        return sum(exchange.exposed for exchange in self.exchanges)

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.products + self.attention + self.memory + self.exposed

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation: what the step needs, over what the devices could do in that time."""
        return self.work.model / (self.seconds * self.peak)

    @property
    def hfu(self) -> float:
        """Hardware FLOPs utilisation: what is computed, over what the devices could do in that time."""
        return self.work.computed / (self.seconds * self.peak)

    @property
    def tokens_per_second(self) -> float:
        """Of all devices together."""
        return self.tokens / self.seconds

    @property
    def bound_by(self) -> str:
        """What takes the most of the step: products, attention, memory, or exposed collectives over some axes."""
        parts = {PRODUCTS: self.products, ATTENTION: self.attention, MEMORY: self.memory}
        parts |= {f"collectives over {' x '.join(each.axes)}": each.exposed for each in self.exchanges}
        return max(parts, key=parts.get)

    def hours(self, tokens: float) -> float:
        """For so many tokens."""
        return tokens / self.tokens_per_second / 3600

    def cost(self, tokens: float, chip_hour: float, devices_per_chip: int = 1) -> float:
        """Of so many tokens, at a price for a chip and hour."""
        return self.hours(tokens) * self.devices / devices_per_chip * chip_hour


def estimate(
    work: Work,
    traffic: Traffic,
    collectives: Sequence[Collective],
    *,
    devices: np.ndarray,
    axes: Sequence[str],
    hardware: Hardware,
    tokens: int,
    shares: Shares | None = None,
) -> Estimate:
    """How long a step takes, and what of.

    Args:
        work: arithmetic of all devices together.
        traffic: bytes of each device's memory.
        collectives: of the step, as they are compiled, or by formula.
        devices: of the mesh: `mesh.devices`.
        axes: of the mesh, one for each dimension of `devices`.
        hardware: what the devices are.
        tokens: of a step.
        shares: of the peaks that are reached; by default those of SHARES.
    """
    shares = shares or SHARES[hardware.name]
    peak = hardware.peak_flops * devices.size * shares.sustained
    bandwidth = hardware.memory_bandwidth * shares.memory * shares.sustained
    products = max(work.products / (peak * shares.products), traffic.weights / bandwidth)
    attention = work.attention / (peak * shares.attention)
    between = (traffic.layers + traffic.loss + traffic.optimizer) / bandwidth
    in_layers = work.loop / work.computed * (products + attention) + traffic.layers / bandwidth
    exchanges = _exchanges(collectives, devices, axes, hardware, shares, in_layers)
    return Estimate(
        products, attention, between, exchanges, work, hardware.peak_flops * devices.size, devices.size, tokens
    )


def _exchanges(collectives, devices, axes, hardware, shares, hidden_behind: float) -> tuple[Exchange, ...]:
    hidden, exposed = defaultdict(float), defaultdict(float)
    for collective in collectives:
        route = route_of(devices, axes, collective.axes, hardware)
        once = seconds_of(collective, route, shares.links, shares.network, shares.hop)
        (hidden if is_hidden(collective) else exposed)[collective.axes] += once * collective.count
    total = sum(hidden.values())
    left = max(0.0, total - hidden_behind) / total if total else 0.0  # of each second of what could be hidden
    found = [
        Exchange(names, hidden[names] + exposed[names], hidden[names] * left + exposed[names])
        for names in {**hidden, **exposed}
    ]
    return tuple(sorted(found, key=lambda exchange: -exchange.seconds))


def is_hidden(collective: Collective) -> bool:
    """Whether layers are computed meanwhile: it is of the layers, and none of the activations split over `tensor`.

    What a loop runs without a name is taken to be theirs; named parts of loops are the head's, or of micro-batches.
    """
    of_layers = collective.scope.startswith("layers") or (collective.in_loop and not collective.scope)
    return of_layers and "tensor" not in collective.axes
