"""Which axes of the mesh a collective runs over: from the groups of devices that a compiled program names.

A device of the program is its number in the flattened mesh.
"""

import math
import re
from collections.abc import Mapping

import numpy as np

_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_TRANSPOSED = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\))?")
_LIST = re.compile(r"\{((?:\{[\d,]*\},?)*)\}")
_MESH = re.compile(
    r"mesh\[(?P<axes>[^\]]*)\](?:, device_ids=\((?P<ids>[^)]*(?:\([\d,]*\))?[^)]*)\))? \{(?P<over>[^}]*)\}"
)
_SUB_AXIS = re.compile(r"(?P<name>.*?)(?::\((?P<before>\d+)\)(?P<size>\d+))?")


def groups_of(attributes: str, devices: int) -> np.ndarray:
    """The devices of a collective that exchange with one another, a group a row.

    Args:
        attributes: of the instruction, with `replica_groups` in any of the ways in which it is written, or
            `source_target_pairs`, which are joined to the rings or chains that they make.
        devices: of the program.

    Raises:
        ValueError: it names them in no way that is known here.
    """
    pairs = re.search(r"source_target_pairs=" + _LIST.pattern, attributes)
    if pairs:
        return _joined(_listed(pairs[1]))
    written = re.search(r"replica_groups=(.*)", attributes)
    if written is None or written[1].startswith("{}"):
        return np.arange(devices)[None]
    if found := _IOTA.match(written[1]):
        return _iota(found)
    if found := _LIST.match(written[1]):
        return np.array(_listed(found[1]))
    if found := _MESH.match(written[1]):
        return _over_axes(found, devices)
    raise ValueError(f"a collective of the compiled program has groups that are not understood: {written[1][:200]}")


def axes_of(groups: np.ndarray, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The axes of the mesh along which the devices of a group differ, in the mesh's order.

    Args:
        groups: of devices, a group a row.
        mesh: size by axis.
    """
    places = np.unravel_index(groups, tuple(mesh.values()))
    return tuple(name for name, place in zip(mesh, places, strict=True) if (place != place[:, :1]).any())


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number.strip()]


def _listed(text: str) -> list[list[int]]:
    return [_numbers(group) for group in re.findall(r"\{([\d,]*)\}", text)]


def _iota(found: re.Match) -> np.ndarray:
    """`[4,2]<=[2,4]T(1,0)`: the numbers from 0 in the shape [2,4], transposed, as 4 groups of 2."""
    numbers = np.arange(math.prod(_numbers(found[2]))).reshape(_numbers(found[2]))
    if found[3]:
        numbers = numbers.transpose(_numbers(found[3]))
    return numbers.reshape(_numbers(found[1]))


def _over_axes(found: re.Match, devices: int) -> np.ndarray:
    """`mesh['a'=4,'b'=2] {'a'}`: groups along an axis; `'a':(2)2` is its part of size 2 that has 2 before it."""
    sizes = {name: int(size) for name, size in (axis.rsplit("=", 1) for axis in found["axes"].split(","))}
    numbers = np.arange(devices)
    if found["ids"]:
        numbers = _device_ids(found["ids"])
    over = {}  # by axis, its parts: (size of what lies before, size)
    for written in filter(None, found["over"].split(",")):
        axis = _SUB_AXIS.fullmatch(written)
        part = (int(axis["before"]), int(axis["size"])) if axis["size"] else (1, sizes[axis["name"]])
        over.setdefault(axis["name"], []).append(part)
    split, grouped = [], []
    for name, size in sizes.items():
        done = 1
        for before, part in sorted(over.get(name, [])):
            split += [before // done, part]
            grouped.append(len(split) - 1)
            done = before * part
        split.append(size // done)
    numbers = numbers.reshape(split)
    apart = [dimension for dimension in range(len(split)) if dimension not in grouped]
    return numbers.transpose(apart + grouped).reshape(-1, math.prod(split[dimension] for dimension in grouped))


def _device_ids(written: str) -> np.ndarray:
    """`[4,2]<=[2,4]T(1,0)`; `[2,4]T(1,0)`, the numbers from 0 in the shape [2,4], transposed; or one by one."""
    if found := _IOTA.match(written):
        return _iota(found)
    if found := _TRANSPOSED.match(written):
        numbers = np.arange(math.prod(_numbers(found[1]))).reshape(_numbers(found[1]))
        return numbers.transpose(_numbers(found[2])) if found[2] else numbers
    return np.array(_numbers(written))


def _joined(pairs: list[list[int]]) -> np.ndarray:
    """Groups of devices that send to one another, over whatever stations; all are as large as the largest.

    Where some are smaller (the ends of a shift), they are filled up with their own first device.
    """
    group_of: dict[int, set[int]] = {}
    for source, target in pairs:
        joined = group_of.get(source, {source}) | group_of.get(target, {target})
        for device in joined:
            group_of[device] = joined
    groups = {min(group): sorted(group) for group in group_of.values()}
    largest = max(map(len, groups.values()), default=1)
    filled = [group + group[:1] * (largest - len(group)) for group in groups.values()]
    return np.array(filled).reshape(-1, largest)
