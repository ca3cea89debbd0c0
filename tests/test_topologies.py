"""The mesh on the chips that the TPU compiler describes, of slices that are not here."""

import os

import numpy as np
import pytest

from sft_jax import sharding

pytestmark = [pytest.mark.compilers, pytest.mark.slow]


@pytest.fixture(scope="module")
def chips():
    """Chips of a topology, as JAX gives them."""
    pytest.importorskip("libtpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from jax.experimental import topologies

    def chips(name: str, slices: int = 1) -> list:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, num_slices=slices).devices

    return chips


TOPOLOGIES = {
    "v6e, tensor 2": ("v6e:4x4", 1, {"fsdp": 8, "tensor": 2}),
    "v5p, tensor 2": ("v5p:4x4x4", 1, {"fsdp": 32, "tensor": 2}),
    "v5p, fsdp 8": ("v5p:4x4x4", 1, {"replica": 8, "fsdp": 8}),
    "v5e, context 4": ("v5e:4x4", 1, {"fsdp": 4, "context": 4}),
    "2 slices of v5e": ("v5e:4x4", 2, {"replica": 2, "fsdp": 16}),
    "2 slices of v5e, fsdp over both": ("v5e:4x4", 2, {"fsdp": 16, "tensor": 2}),
    "4 slices of v5p": ("v5p:2x2x4", 4, {"replica": 2, "fsdp": 32}),
}


@pytest.mark.parametrize("case", TOPOLOGIES)
def test_there_are_places_for_all_axes(chips, case):
    name, slices, axes = TOPOLOGIES[case]
    devices = chips(name, slices)
    mesh = sharding.make_mesh(axes, devices)
    assert set(mesh.devices.flat) == set(devices)
    *_, (last, size) = axes.items()
    over = dict(zip(mesh.axis_names, sharding.over_slices(mesh.devices.shape, slices), strict=True))
    for group in mesh.devices.reshape(-1, size // over[last]):  # along the last axis, within a slice
        places = np.array([device.coords for device in group])
        assert np.prod(np.ptp(places, axis=0) + 1) == len(group), "what exchanges most lies apart"


@pytest.mark.parametrize(("axes", "over"), [({"replica": 2, "fsdp": 16}, "replica"), ({"fsdp": 32}, "fsdp")])
def test_the_first_axis_goes_over_slices(chips, axes, over):
    mesh = sharding.make_mesh(axes, chips("v5e:4x4", 2))
    index = mesh.axis_names.index(over)
    halves = np.split(mesh.devices, 2, axis=index)
    assert [{device.slice_index for device in half.flat} for half in halves] == [{0}, {1}]
