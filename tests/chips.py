"""Devices that are not there: what JAX says of the chips of a TPU, and of GPUs."""

import dataclasses
import itertools
import random

HOST = (2, 2, 1)  # chips


@dataclasses.dataclass(frozen=True)
class Client:
    """Who asks for devices."""

    process: int

    def process_index(self) -> int:
        return self.process


@dataclasses.dataclass(frozen=True)
class Chip:
    """What JAX says of a TPU chip, as far as its place goes."""

    id: int
    coords: tuple[int, int, int]
    process_index: int
    slice_index: int = 0
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v4"
    client: Client | None = None


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What JAX says of a GPU, as far as its place goes."""

    id: int
    process_index: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100 80GB HBM3"


def torus(*shape: int, kind: str = "TPU v4", slices: int = 1) -> list[Chip]:
    """Chips of slices of this shape, of hosts with 2 x 2 of them each."""
    shape = (*shape, 1)[:3]
    hosts = [-(-size // chips) for size, chips in zip(shape, HOST, strict=True)]
    made = []
    for of_slice, place in itertools.product(range(slices), itertools.product(*map(range, shape))):
        x, y, z = (at // chips for at, chips in zip(place, HOST, strict=True))
        host = (x * hosts[1] + y) * hosts[2] + z
        process = of_slice * hosts[0] * hosts[1] * hosts[2] + host
        made.append(Chip(len(made), place, process, of_slice, device_kind=kind))
    return made


def shuffled(devices: list) -> list:
    """The devices in another order."""
    return random.Random(0).sample(devices, len(devices))
