"""Reads the text of a compiled program (HLO): its computations, their instructions, and how often each runs.

The cost analysis of XLA counts the body of a loop once, and knows nothing of collectives; so the text is read.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence

_HEADER = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"  (?P<root>ROOT )?%?(?P<name>[\w.-]+) = (?P<rest>.*)$")
_OPCODE = re.compile(r"(?P<opcode>[a-z][\w-]*)\(")
_NAME = re.compile(r"%([\w.-]+)")
_ARRAY = re.compile(r"\b(?P<dtype>[a-z][a-z0-9]*)\[(?P<sizes>[\d,<=]*)\]")
_ALIASED = re.compile(r"\{(\d+)\}: \(\d+, \{[\d, ]*\}, (?:may|must)-alias\)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CALLED = re.compile(r"\b(?:to_apply|calls|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
# What reduces, sorts or scatters applies a computation to each element: no work of its own.
_CALLERS = {"call", "fusion", "conditional", "async-start", "custom-call"}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation.

    Attributes:
        name: which no other in the program has.
        type: of its result, as it is written: `bf16[4,128]{1,0}`, or several in parentheses.
        opcode: what it does.
        operands: names of what it is given.
        literal: the value of a constant, the number of a parameter; empty for all others.
        attributes: the rest of the line.
        is_root: whether it is the result of its computation.
    """

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    literal: str
    attributes: str
    is_root: bool

    @property
    def op_name(self) -> str:
        """The operation of JAX that it comes from; empty where the compiler made it."""
        found = _OP_NAME.search(self.attributes)
        return found[1] if found else ""

    def attribute(self, name: str) -> str | None:
        """The name of a computation that an attribute gives."""
        found = re.search(rf"\b{name}=%?([\w.-]+)", self.attributes)
        return found[1] if found else None

    @property
    def called(self) -> list[str]:
        """Computations that it runs once, beside bodies of loops."""
        if self.opcode not in _CALLERS:
            return []
        branches = _BRANCHES.search(self.attributes)
        return _CALLED.findall(self.attributes) + (_NAME.findall(branches[1]) if branches else [])


@dataclasses.dataclass(frozen=True)
class Computation:
    """A function of a program: its instructions, by name, in their order."""

    name: str
    instructions: dict[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        """Its result."""
        return next(line for line in self.instructions.values() if line.is_root)


@dataclasses.dataclass(frozen=True)
class Running:
    """An instruction, and how often it runs.

    Attributes:
        instruction: itself.
        computation: that it is in.
        times: that it runs when the program does; of a branch, as if it were always taken.
        in_loop: whether a loop runs it.
        in_fusion: whether it is part of another instruction, which makes no array of its result.
    """

    instruction: Instruction
    computation: Computation
    times: int
    in_loop: bool
    in_fusion: bool


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
        computations: by name.
        entry: name of the one that the others are called from.
        aliased_outputs: numbers of its results that take the place of an argument.
    """

    computations: dict[str, Computation]
    entry: str
    aliased_outputs: tuple[int, ...] = ()

    def running(self) -> Iterator[Running]:
        """All instructions that run, those of fusions included, with how often: in `unknown_loops` once."""
        yield from self._running(self.entry, 1, in_loop=False, in_fusion=False)

    def _running(self, name: str, times: int, *, in_loop: bool, in_fusion: bool) -> Iterator[Running]:
        computation = self.computations[name]
        for line in computation.instructions.values():
            yield Running(line, computation, times, in_loop, in_fusion)
            inside = in_fusion or line.opcode == "fusion"
            for called in line.called:
                yield from self._running(called, times, in_loop=in_loop, in_fusion=inside)
            if line.opcode == "while":
                known = self.trip_count(line, computation)
                rounds = times * (1 if known is None else known)
                yield from self._running(line.attribute("body"), rounds, in_loop=True, in_fusion=inside)

    def unknown_loops(self) -> list[str]:
        """Names of the loops whose number of rounds is not known before they run, or is not understood here."""
        loops = ((line, made) for made in self.computations.values() for line in made.instructions.values())
        return [
            line.op_name or line.name
            for line, made in loops
            if line.opcode == "while" and self.trip_count(line, made) is None
        ]

    def trip_count(self, loop: Instruction, computation: Computation) -> int | None:
        """How often a `while` runs its body: what the compiler noted, or what follows from its counter; else None.

        Args:
            loop: the instruction.
            computation: that it is in.
        """
        noted = re.search(r'known_trip_count"?[:=]\{"?n"?:"(\d+)"', loop.attributes)
        if noted:
            return int(noted[1])
        condition = self.computations[loop.attribute("condition")]
        body = self.computations[loop.attribute("body")]
        limit, direction, counter = self._condition(condition)
        if counter is not None and isinstance(limit, int):
            after = _element(self._value(body, body.root.name), counter.index)
            start = _element(self._value(computation, loop.operands[0]), counter.index)
            if isinstance(after, _Counter) and after.index == counter.index and after.more and isinstance(start, int):
                if direction in ("LE", "GE"):
                    limit += 1 if direction == "LE" else -1
                return max(0, math.ceil((limit - start - counter.more) / after.more))
        return None

    def _condition(self, condition: Computation) -> "tuple[_Value, str, _Counter | None]":
        """What a loop compares its counter with, how, and the counter."""
        root, where, given = condition.root, condition, None
        while root.opcode == "fusion":
            given = {str(number): self._value(where, operand, given) for number, operand in enumerate(root.operands)}
            where = self.computations[root.called[0]]
            root = where.root
        direction = re.search(r"direction=(\w+)", root.attributes)
        if root.opcode != "compare" or direction is None:
            return None, "", None
        left, right = (self._value(where, operand, given) for operand in root.operands)
        if isinstance(right, _Counter):
            left, right = right, left
        return right, direction[1], left if isinstance(left, _Counter) else None

    def _value(self, where: Computation, name: str, given: "dict[str, _Value] | None" = None) -> "_Value":
        """A scalar as far as it is known before the program runs: a number, a counter of the loop, or a tuple.

        Args:
            where: computation with the instruction.
            name: of the instruction.
            given: values of parameters, by number; without, the only one is a tuple of counters.
        """
        line = where.instructions[name]
        if line.opcode == "constant":
            return int(line.literal) if re.fullmatch(r"-?\d+", line.literal) else None
        if line.opcode == "parameter":
            return _COUNTERS if given is None else given.get(line.literal)
        if line.opcode == "tuple":
            return _Tuple(where, line.operands, given, self)
        if not line.operands:
            return None
        first = lambda: self._value(where, line.operands[0], given)
        if line.opcode in ("copy", "convert", "bitcast", "reshape"):
            return first()
        if line.opcode == "get-tuple-element":
            index = re.search(r"index=(\d+)", line.attributes)
            return _element(first(), int(index[1]))
        if line.opcode == "add":
            return _sum(first(), self._value(where, line.operands[1], given))
        if line.opcode == "fusion":
            inner = {str(number): self._value(where, operand, given) for number, operand in enumerate(line.operands)}
            called = self.computations[line.called[0]]
            return self._value(called, called.root.name, inner)
        return None


@dataclasses.dataclass(frozen=True)
class _Counter:
    """An element of what a loop carries, and what was added to it."""

    index: int
    more: int = 0


class _Counters:
    """What a loop carries, seen from within."""


_COUNTERS = _Counters()


@dataclasses.dataclass(frozen=True)
class _Tuple:
    """Several values, of which one is looked at when it is asked for."""

    where: Computation
    operands: tuple[str, ...]
    given: "dict[str, _Value] | None"
    program: Program


_Value = int | _Counter | _Counters | _Tuple | None


def _element(value: _Value, index: int) -> _Value:
    if isinstance(value, _Tuple):
        return value.program._value(value.where, value.operands[index], value.given)
    return _Counter(index) if isinstance(value, _Counters) else None


def _sum(left: _Value, right: _Value) -> _Value:
    if isinstance(right, _Counter):
        left, right = right, left
    if not isinstance(right, int):
        return None
    if isinstance(left, _Counter):
        return _Counter(left.index, left.more + right)
    return left + right if isinstance(left, int) else None


def read(text: str) -> Program:
    """The program that a text is of (`compiled.as_text()`).

    Raises:
        ValueError: it has no entry computation: it is no HLO.
    """
    computations, entry, name, lines = {}, None, None, {}
    for line in text.splitlines():
        if line.startswith("  ") and name is not None:
            if found := _INSTRUCTION.match(line):
                instruction = _instruction(found)
                lines[instruction.name] = instruction
        elif found := _HEADER.match(line):
            name, lines = found["name"], {}
            entry = name if found["entry"] else entry
        elif line == "}" and name is not None:
            computations[name] = Computation(name, lines)
            name = None
    if entry is None:
        raise ValueError("this is not the text of a compiled program: it has no ENTRY computation")
    header = text[: text.find("\n")]
    return Program(computations, entry, tuple(map(int, _ALIASED.findall(header))))


def _instruction(found: re.Match) -> Instruction:
    rest = found["rest"]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opcode = _OPCODE.match(rest)
    close = _closing(rest, opcode.end() - 1)
    given = rest[opcode.end() : close]
    literal = given if opcode["opcode"] in ("constant", "parameter") else ""
    operands = () if literal else tuple(_NAME.findall(given))
    return Instruction(
        found["name"], kind, opcode["opcode"], operands, literal, rest[close + 1 :], found["root"] is not None
    )


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    raise ValueError(f"a parenthesis of the compiled program does not close: {text[start:][:200]}")


# ---- Types of results -----------------------------------------------------------------------------------------------

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}


def dtype_bits(dtype: str) -> int:
    """Bits of an element: `bf16` has 16, `f8e4m3fn` 8, `pred` a byte."""
    if dtype in _BITS:
        return _BITS[dtype]
    return int(re.match(r"[a-z]+(\d+)", dtype)[1])


def arrays_of(kind: str) -> list[tuple[str, tuple[int, ...], int]]:
    """(dtype, sizes, bytes) of each array of a type, in their order."""
    arrays = []
    for found in _ARRAY.finditer(kind):
        sizes = tuple(int(size.lstrip("<=")) for size in found["sizes"].split(",") if size)
        arrays.append((found["dtype"], sizes, math.prod(sizes) * dtype_bits(found["dtype"]) // 8))
    return arrays


def elements_of(kind: str) -> Sequence[str]:
    """The types in a tuple's type; those of an array alone are itself."""
    if not kind.startswith("("):
        return [kind]
    parts, depth, start = [], 0, 1
    for place, sign in enumerate(kind):
        if sign in "([{":
            depth += 1
        elif sign in ")]}":
            depth -= 1
        if (sign == "," and depth == 1) or depth == 0:
            parts.append(re.sub(r"/\*.*?\*/", "", kind[start:place]).strip())
            start = place + 1
    return parts
