"""Reads a compiled program: its collectives, and which of them a loop repeats."""

import dataclasses
import math
import re

_KINDS = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all"
_COLLECTIVE = re.compile(rf" = (.*?) ({_KINDS})(?:-start)?\((.*)")
_HEADER = re.compile(r"(?:ENTRY )?%?([\w.\-]+) .*\{$")
_ARRAY = re.compile(r"\b([a-z]+\d+|pred)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations=\{[^}]*)=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction: its kind, the dtype and the largest shape of what it gives, whether a loop repeats it."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    in_loop: bool
    name: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def collectives(program: str) -> list[Collective]:
    """All collectives of a program (`compiled.as_text()`) between several devices."""
    bodies: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in program.splitlines():
        if not line.startswith((" ", "}")) and (header := _HEADER.match(line)):
            lines = bodies.setdefault(header[1], [])
        lines.append(line)
    looped = _reached(
        bodies, {name for line in program.splitlines() for name in re.findall(r" body=%?([\w.\-]+)", line)}
    )
    return [
        made
        for name, lines in bodies.items()
        for line in lines
        if (found := _COLLECTIVE.search(line)) and (made := _collective(found, name in looped)) is not None
    ]


def _reached(bodies: dict[str, list[str]], names: set[str]) -> set[str]:
    """These computations, and those that they call."""
    reached, left = set(), list(names)
    while left:
        name = left.pop()
        if name not in reached:
            reached.add(name)
            left += [called for line in bodies.get(name, ()) for called in _CALLED.findall(line)]
    return reached


def _collective(found: re.Match, in_loop: bool) -> Collective | None:
    result, kind, rest = found.groups()
    if re.search(r"replica_groups=\{\{\d+\}", rest):
        return None  # of one device each
    arrays = [(dtype, tuple(map(int, dims.split(","))) if dims else ()) for dtype, dims in _ARRAY.findall(result)]
    dtype, shape = max(arrays, key=lambda array: math.prod(array[1]))
    name = re.search(r'op_name="([^"]*)"', rest)
    return Collective(kind, dtype, shape, in_loop, name[1] if name else "")
