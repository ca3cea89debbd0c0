"""The largest arrays that a compiled step makes, and the operations that make them.

Where buffers lie and which share a place is known to the compiler alone; so these are results of instructions, the
largest first, and not a sum.
"""

import dataclasses
import re
from collections import Counter

from sft_jax.planning.hlo import Instruction, Program, arrays_of, elements_of
from sft_jax.planning.scopes import phase_of, scope_of

# What makes no array of its own.
_NAMES = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "call",
    "conditional",
    "optimization-barrier",
    "after-all",
    "copy-done",
    "async-update",
    "async-done",
}
_NOT_HBM = re.compile(r"S\([1-9]\d*\)\}")  # in vector memory, scalar memory or on the host


@dataclasses.dataclass(frozen=True)
class Buffer:
    """Equal results.

    Attributes:
        dtype: as HLO names it.
        sizes: of its dimensions, on a device.
        bytes: likewise.
        scope: the part of the step that makes it (`scopes.scope_of`).
        phase: `forward`, `backward`, `recomputed` or empty.
        operation: of JAX, the last part of its name; where the compiler made it, its instruction.
        count: instructions with such a result; they may share a place.
    """

    dtype: str
    sizes: tuple[int, ...]
    bytes: int
    scope: str
    phase: str
    operation: str
    count: int


def largest_results(program: Program, count: int) -> list[Buffer]:
    """The largest results beside those that take the place of an argument, equal ones as one.

    Args:
        program: the compiled step.
        count: how many.
    """
    found: Counter[Buffer] = Counter()
    in_place = _in_place(program)
    for running in program.running():
        line = running.instruction
        if running.in_fusion or line.opcode in _NAMES or line.opcode.endswith("-done"):
            continue
        for number, kind in _results(line):
            if (line.name, number) in in_place or _NOT_HBM.search(kind):
                continue
            for dtype, sizes, size in arrays_of(kind):
                found[_described(line, program, dtype, sizes, size)] += 1
    ordered = sorted(found.items(), key=lambda item: (-item[0].bytes, item[0].scope, item[0].operation))
    return [dataclasses.replace(buffer, count=number) for buffer, number in ordered[:count]]


def _results(line: Instruction) -> list[tuple[int, str]]:
    """(element, type) of what it makes; what begins an exchange names its operands first, which are there already."""
    kinds = list(enumerate(elements_of(line.type)))
    begins = line.opcode.endswith("-start") and line.type.startswith("(")
    return kinds[1:2] if begins else kinds


def _described(line: Instruction, program: Program, dtype: str, sizes: tuple[int, ...], size: int) -> Buffer:
    inner = [program.computations[called].root.op_name for called in line.called]
    name = next(filter(None, [line.op_name, *inner]), "")
    target = re.search(r'custom_call_target="([^"]*)"', line.attributes)
    operation = name.rpartition("/")[2] or (target[1] if target else line.name)
    return Buffer(dtype, sizes, size, scope_of(name), phase_of(name), operation, 0)


def _in_place(program: Program) -> set[tuple[str, int]]:
    """(instruction, element) of results that take the place of a donated argument: they are counted as arguments."""
    entry = program.computations[program.entry]
    root = entry.root
    places = set()
    for output in program.aliased_outputs:
        name = root.operands[output] if root.opcode == "tuple" else root.name
        element = 0
        while (line := entry.instructions[name]).opcode in ("bitcast", "copy", "get-tuple-element"):
            places.add((name, 0))
            index = re.search(r"index=(\d+)", line.attributes)
            element = int(index[1]) if index else element
            name = line.operands[0]
        places.add((name, element))
    return places
