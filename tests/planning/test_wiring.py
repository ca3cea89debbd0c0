"""Bandwidth between devices by their places, and seconds of collectives, against figures computed by hand."""

import dataclasses
import itertools

import numpy as np
import pytest

from sft_jax.hardware import hardware_named
from sft_jax.planning.collectives import Collective
from sft_jax.planning.wiring import route_of, seconds_of
from tests.chips import Chip

V5E, V5P, H100 = (hardware_named(name) for name in ("v5e", "v5p", "h100"))
LINK = V5E.links.link_bandwidth


def chips(shape: tuple[int, ...], mesh: tuple[int, ...], slices: int = 1) -> np.ndarray:
    """Chips of slices of this shape, in the order of their places, as a mesh."""
    places = itertools.product(range(slices), *map(range, shape))
    made = [Chip(i, (*place, 0)[:3], 0, number) for i, (number, *place) in enumerate(places)]
    return np.array([*made, None], dtype=object)[:-1].reshape(mesh)


def gpus(mesh: tuple[int, ...]) -> np.ndarray:
    made = [Chip(i, (0, 0, 0), 0, platform="gpu") for i in range(int(np.prod(mesh)))]
    return np.array([*made, None], dtype=object)[:-1].reshape(mesh)


@pytest.mark.parametrize(
    ("shape", "mesh", "group", "bandwidth"),
    [
        ((4, 4), (16, 1), ("fsdp",), 2 * LINK),  # two lines, one direction each
        ((4, 4), (4, 4), ("tensor",), LINK),  # one line
        ((4, 4), (8, 2), ("tensor",), LINK),  # neighbours
        ((16, 16), (256, 1), ("fsdp",), 2 * 2 * LINK),  # two rings, both directions
        ((16, 16), (16, 16), ("fsdp",), 2 * LINK),
        ((4, 4), (8, 2), ("fsdp",), LINK + LINK / 2),  # every other chip of a line: two groups share its links
    ],
)
def test_bandwidth_of_axes_in_a_torus(shape, mesh, group, bandwidth):
    assert route_of(chips(shape, mesh), ("fsdp", "tensor"), group, V5E).bandwidth == pytest.approx(bandwidth)


def test_cubes_are_rings_and_parts_of_them_lines():
    link = V5P.links.link_bandwidth
    assert route_of(chips((4, 4, 4), (64,)), ("fsdp",), ("fsdp",), V5P).bandwidth == 3 * 2 * link
    assert route_of(chips((2, 2, 4), (16,)), ("fsdp",), ("fsdp",), V5P).bandwidth == 3 * link
    assert route_of(chips((4, 4, 4), (32, 2)), ("fsdp", "tensor"), ("tensor",), V5P).bandwidth == link


def seconds(kind, size, devices, axes, group, hardware, members):
    route = route_of(devices, axes, group, hardware)
    return seconds_of(Collective(kind, group, "bf16", int(size), members, 1, "", False), route, 1.0, 1.0, 0.0)


def test_a_gather_brings_all_but_its_own_part():
    devices, names = chips((4, 4), (16,)), ("fsdp",)
    assert seconds("all-gather", 16e6, devices, names, names, V5E, 16) == pytest.approx(15e6 / (2 * LINK))
    assert seconds("reduce-scatter", 1e6, devices, names, names, V5E, 16) == pytest.approx(15e6 / (2 * LINK))
    assert seconds("all-reduce", 16e6, devices, names, names, V5E, 16) == pytest.approx(30e6 / (2 * LINK))


def test_all_to_all_crosses_the_middle():
    """Eight chips in a line, 1 MB each: half of what four of them have goes over the one link in the middle."""
    devices = chips((8,), (8,))
    devices = np.array([dataclasses.replace(chip, coords=(chip.coords[0], 0, 0)) for chip in devices], dtype=object)
    assert seconds("all-to-all", 1e6, devices, ("expert",), ("expert",), V5E, 8) == pytest.approx(4 * 0.5e6 / LINK)


def test_within_a_host_of_gpus_and_between_hosts():
    names = ("replica", "fsdp")
    gather = lambda group, members: seconds("all-gather", 8e6, gpus((2, 8)), names, group, H100, members)
    assert gather(("fsdp",), 8) == pytest.approx(7e6 / 4.5e11)
    assert gather(("replica",), 2) == pytest.approx(4e6 / 50e9)  # one GPU of each host
    # 16 GPUs: half comes from the other host, over the cards of eight; that is slower than 7/8 over NVLink.
    assert gather(names, 16) == pytest.approx(max(4e6 / (8 * 50e9), 7e6 / 4.5e11))


def test_between_slices_it_goes_over_the_network():
    devices, names = chips((4, 4), (2, 16), slices=2), ("replica", "fsdp")
    route = route_of(devices, names, ("replica",), V5E)
    assert (route.islands, route.within) == (2, 1)
    assert seconds("all-reduce", 1e6, devices, names, ("replica",), V5E, 2) == pytest.approx(
        1e6 / V5E.network_bandwidth
    )


def test_each_hop_adds_its_time():
    route = route_of(chips((16, 16), (256,)), ("fsdp",), ("fsdp",), V5E)
    one = Collective("all-gather", ("fsdp",), "bf16", 256, 256, 1, "", True)
    assert seconds_of(one, route, 1.0, 1.0, 1e-6) == pytest.approx(8e-6, rel=0.01)
