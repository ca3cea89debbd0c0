"""The mesh on devices that are wired as a torus, as TPUs are."""

import dataclasses
import itertools

import numpy as np
import pytest

from sft_jax.training.sharding import arranged


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


@pytest.mark.parametrize("tensor", [2, 4, 8])
def test_axes_of_the_mesh_may_split_those_of_the_torus(tensor):
    chips = torus(4, 4)
    devices = arranged((1, 16 // tensor, 1, tensor), chips)
    assert devices.shape == (1, 16 // tensor, 1, tensor)
    assert set(devices.flat) == set(chips)
    for group in devices.reshape(-1, tensor):  # neighbours: a line or a rectangle of chips
        places = np.array([chip.coords for chip in group])
        assert np.prod(np.ptp(places, axis=0) + 1) == tensor


def test_several_slices_are_refused():
    chips = [dataclasses.replace(chip, slice_index=chip.process_index // 2) for chip in torus(4, 4)]
    with pytest.raises(ValueError, match="several TPU slices"):
        arranged((1, 16, 1, 1), chips)
