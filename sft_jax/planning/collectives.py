"""The collectives of a compiled program: what kind, over which axes of the mesh, how many bytes, how often."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping

from sft_jax.planning.groups import axes_of, groups_of
from sft_jax.planning.hlo import Computation, Instruction, Program, Running, arrays_of, elements_of
from sft_jax.planning.scopes import scope_of

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_NEAR = 4  # instructions that a scope is looked for behind one that has none
# How TPUs name the loop over a product that sends its kernel or its result on, a device's piece at a time.
_IN_STEPS = re.compile(r"windowed_dot_general_body_(rs|ag)")
_STANDS_FOR = {"rs": "reduce-scatter", "ag": "all-gather"}


@dataclasses.dataclass(frozen=True)
class Collective:
    """Equal collectives of a program.

    Attributes:
        kind: one of KINDS.
        axes: of the mesh over which it runs.
        dtype: of what is exchanged, as HLO names it: `bf16`.
        bytes: of one result, on a device.
        group: devices that take part in one.
        count: how often it runs in a step.
        scope: the part of the step that it belongs to (`scopes.scope_of`).
        in_loop: whether a loop of the program runs it.
        stands_for: the collective that permutes take the place of, where a product does it in steps; else empty.
    """

    kind: str
    axes: tuple[str, ...]
    dtype: str
    bytes: int
    group: int
    count: int
    scope: str
    in_loop: bool
    stands_for: str = ""

    @property
    def total(self) -> int:
        """Bytes of all its results in a step, on a device."""
        return self.bytes * self.count


def collectives_of(program: Program, mesh: Mapping[str, int]) -> list[Collective]:
    """The collectives of a program, equal ones as one, those with the most bytes first.

    Those over groups of a single device, which move nothing, are left out.

    Args:
        program: that was compiled for the mesh.
        mesh: size by axis.
    """
    counts: Counter[Collective] = Counter()
    devices, in_steps = math.prod(mesh.values()), _in_steps(program)
    in_pieces: set[str] = set()
    for running in program.running():
        kind = _kind(running)
        if kind is None or _is_seen(running, in_pieces):
            continue
        groups = groups_of(running.instruction.attributes, devices)
        axes = axes_of(groups, mesh)
        if not axes:
            continue
        dtype, size = _result(running, program)
        op_name = _op_name(running.instruction, running.computation, program)
        stands_for = in_steps.get(op_name, "") if kind == "collective-permute" else ""
        found = Collective(kind, axes, dtype, size, groups.shape[1], 0, scope_of(op_name), running.in_loop, stands_for)
        counts[found] += running.times
    found = [dataclasses.replace(collective, count=count) for collective, count in counts.items()]
    return sorted(found, key=lambda collective: (-collective.total, collective.kind, collective.scope))


def _in_steps(program: Program) -> dict[str, str]:
    """What permutes of a product stand for, by its operation: they are in its loop and, the last, after it."""
    found = {}
    for computation in program.computations.values():
        if named := _IN_STEPS.search(computation.name):
            permutes = (line for line in computation.instructions.values() if _begins(line) == "collective-permute")
            found |= {line.op_name: _STANDS_FOR[named[1]] for line in permutes if line.op_name}
    return found


def _begins(line: Instruction) -> str:
    """Its opcode, without what says that it only begins here."""
    return line.opcode.removesuffix("-start")


def _kind(running: Running) -> str | None:
    """What kind of collective begins with this instruction; None where none does."""
    opcode = _begins(running.instruction)
    if opcode not in KINDS:
        return None
    return "reduce-scatter" if opcode == "all-reduce" and _is_scattered(running) else opcode


def _is_seen(running: Running, in_pieces: set[str]) -> bool:
    """Whether another fusion has a piece of the same collective: TPUs run one in pieces, beside what they compute.

    Args:
        running: a collective.
        in_pieces: channels of those seen in fusions, which it is added to.
    """
    channel = re.search(r"channel_id=(\d+)", running.instruction.attributes)
    if not running.in_fusion or channel is None:
        return False
    seen = channel[1] in in_pieces
    in_pieces.add(channel[1])
    return seen


def _is_scattered(running: Running) -> bool:
    """Whether each device keeps a slice of its sum alone: TPUs fuse the two, and send as for a reduce-scatter."""
    return running.in_fusion and running.computation.root.opcode == "dynamic-slice"


def _result(running: Running, program: Program) -> tuple[str, int]:
    """Dtype of most of its result, and the bytes of all of it."""
    line = running.instruction
    kind = line.type
    if _is_scattered(running):
        kind = running.computation.root.type
    elif line.opcode.endswith("-start") and line.opcode != "all-reduce-start":
        kind = elements_of(kind)[1]  # (operands, results, what the compiler adds)
    arrays = arrays_of(kind)
    dtype = max(arrays, key=lambda array: array[2])[0]
    return dtype, sum(size for _, _, size in arrays)


def _op_name(line: Instruction, computation: Computation, program: Program) -> str:
    """The operation an instruction comes from; where the compiler made it, that of what it is given."""
    near, seen = [line.name], set()
    for _ in range(_NEAR):
        for name in near:
            found = computation.instructions[name]
            inner = [program.computations[called].root.op_name for called in found.called]
            if op_name := next(filter(None, [found.op_name, *inner]), ""):
                return op_name
        seen |= set(near)
        near = [name for at in near for name in computation.instructions[at].operands if name not in seen]
    return ""
