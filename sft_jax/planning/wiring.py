"""How fast devices of a mesh exchange along its axes: from their places in a torus, in hosts and in slices.

The arithmetic is that of rings (Austin et al. 2025, "How to Scale Your Model", chapters on sharding and on GPUs): an
all-gather of V bytes over g devices brings (g - 1) / g V to each of them, in both directions of a ring or in one of a
line, along all axes of the torus that the devices span at the same time. Where they lie in several hosts of GPUs or
slices of TPUs, their share of the network carries (n - 1) / n V between n of those, while the links within carry the
rest; the slower of the two counts.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from sft_jax.hardware import Hardware, Torus
from sft_jax.planning.collectives import Collective

_DIE_TO_DIE = 6  # links of the torus that the one between the two halves of a chip is worth (Google's page of tpu7x)


@dataclasses.dataclass(frozen=True)
class Route:
    """What a group of devices exchanges over.

    Attributes:
        lines: of the torus's axes that they span: (devices along it, bytes/s that each gets along it, whether a ring).
        within: devices of a host or slice that are in the group.
        islands: hosts or slices that they lie in.
        switch: bytes/s of a device into the switch of its host; 0 in a torus.
        network: bytes/s of a device to other hosts or slices.
    """

    lines: tuple[tuple[int, float, bool], ...]
    within: int
    islands: int
    switch: float
    network: float

    @property
    def bandwidth(self) -> float:
        """Bytes/s that a device gets from the others of its island, in an all-gather."""
        return self.switch or sum(bandwidth for _, bandwidth, _ in self.lines)

    @property
    def hops(self) -> int:
        """Links that the last piece of a gather passes, in a torus."""
        return max((size // 2 if ring else size - 1 for size, _, ring in self.lines), default=0)


def route_of(devices: np.ndarray, axes: Sequence[str], group: Sequence[str], hardware: Hardware) -> Route:
    """What the devices along some axes exchange over.

    Args:
        devices: of the mesh, as JAX describes them: `mesh.devices`.
        axes: of the mesh, one for each dimension of `devices`.
        group: those along which the devices of a collective lie.
        hardware: what they are.
    """
    members = devices[tuple(slice(None) if axis in group else 0 for axis in axes)].reshape(-1)
    islands: dict[int, list[Any]] = {}
    for device in members:
        islands.setdefault(_island(device, hardware), []).append(device)
    first = max(islands.values(), key=len)
    lines, switch = (), 0.0
    if not isinstance(hardware.links, Torus):
        switch = hardware.links.bandwidth
    elif len(first) > 1:
        slice_of = [device for device in devices.flat if _island(device, hardware) == _island(first[0], hardware)]
        lines = _lines(first, _places(slice_of, hardware), hardware)
    return Route(lines, len(first), len(islands), switch, hardware.network_bandwidth)


def _island(device: Any, hardware: Hardware) -> int:
    """The slice of a TPU; the host of a GPU."""
    if isinstance(hardware.links, Torus):
        return getattr(device, "slice_index", 0)
    return device.id // hardware.devices_per_host


def _places(devices: Sequence[Any], hardware: Hardware) -> np.ndarray:
    """Coordinates of chips: [devices, dimensions of the torus]."""
    return np.array([device.coords for device in devices])[:, : hardware.links.dimensions]


def _lines(group: Sequence[Any], slice_places: np.ndarray, hardware: Hardware) -> tuple[tuple[int, float, bool], ...]:
    """Each axis of the torus along which the group extends. Groups that lie between one another share its links."""
    extents = np.ptp(slice_places, axis=0) + 1
    wraps = hardware.links.wraps(tuple(int(extent) for extent in extents))
    lines = []
    for axis, along in enumerate(_places(group, hardware).T):
        values = np.unique(along)
        if len(values) > 1:
            apart = int(np.diff(values).min())
            ring = wraps[axis] and len(values) * apart == extents[axis]
            lines.append((len(values), (1 + ring) * hardware.links.link_bandwidth / apart, bool(ring)))
    if not lines:  # the halves of a chip
        lines.append((len(group), _DIE_TO_DIE * hardware.links.link_bandwidth, False))
    return tuple(lines)


def seconds_of(collective: Collective, route: Route, links_share: float, network_share: float, hop: float) -> float:
    """Seconds of one such collective, with nothing beside it.

    Args:
        collective: it; `bytes` are of a result on a device.
        route: what its devices exchange over.
        links_share: of the links' bandwidth that is reached.
        network_share: of the network's.
        hop: seconds that a link takes beside the bytes, in a torus.
    """
    within, islands, size = route.within, route.islands, collective.bytes
    links, network = route.bandwidth * links_share, route.network * network_share
    waiting = route.hops * hop
    if collective.kind in ("all-to-all", "ragged-all-to-all"):
        between = size * (islands - 1) / islands / network
        return max(_all_to_all(size, route, links_share), between) + waiting
    if collective.kind == "collective-permute":  # each device to the next: over one link in one direction
        link = min((bandwidth / (1 + ring) for _, bandwidth, ring in route.lines), default=route.switch)
        return size / (network if islands > 1 else link * links_share) + hop * bool(route.lines)
    if collective.kind == "reduce-scatter":
        size *= collective.group
    times = 2 if collective.kind == "all-reduce" else 1
    inside = size * (within - 1) / within / links if within > 1 else 0.0
    between = size * (islands - 1) / islands / (within * network)
    return times * (max(inside, between) + waiting)


def _all_to_all(size: float, route: Route, share: float) -> float:
    """Half of what the devices send crosses the middle of the longest line, or the two middles of a ring."""
    if route.within == 1:
        return 0.0
    if route.switch:
        return size * (route.within - 1) / route.within / (route.switch * share)
    return max(devices * size / 4 / (bandwidth * share) for devices, bandwidth, _ in route.lines)
