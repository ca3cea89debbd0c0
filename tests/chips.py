"""Devices that are not there: what JAX says of the chips of a TPU."""

import dataclasses
import itertools


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


def torus(rows: int, columns: int) -> list[Chip]:
    """Chips of hosts with 2 x 2 of them each."""
    places = itertools.product(range(rows), range(columns))
    return [Chip(i, (x, y, 0), x // 2 * (columns // 2) + y // 2) for i, (x, y) in enumerate(places)]
