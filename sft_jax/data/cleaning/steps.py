"""What a cleaning step is: a look at one record that keeps it, changes it or drops it."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sft_jax.data.records import Record


class Drop(NamedTuple):
    """The record is left out. `reason` is the same for all records with this fault, `detail` about this one."""

    reason: str
    detail: str = ""


class Change(NamedTuple):
    """The record goes on as another, and why."""

    record: Record
    reason: str


Outcome = Drop | Change | None  # None: it goes on as it is


Act = Callable[[Record], Outcome]


@dataclasses.dataclass(frozen=True)
class Step:
    """A step over a data set.

    Attributes:
        begin: begins a pass over the data, and gives what decides about each record of it. Whatever that remembers of
            the records before belongs to this pass.
        look: given every record that reaches the step, before the first pass of `begin`; None where the records before
            one are enough to decide about it. A step that looks costs one more pass over the data.
    """

    begin: Callable[[], Act]
    look: Callable[[Record], None] | None = None


@dataclasses.dataclass(frozen=True)
class Context:
    """What steps compare with.

    Attributes:
        held_out: records kept for measuring.
        benchmarks: prompts of benchmarks.
    """

    held_out: Sequence[Record] = ()
    benchmarks: Sequence[Record] = ()


@dataclasses.dataclass(frozen=True)
class Argument:
    """The argument of a step, given behind its "=".

    Attributes:
        kind: int, float or str.
        default: taken where nothing is given; None: something has to be.
        least: smallest number allowed.
        most: largest number allowed.
        choices: the texts allowed; empty: any.
    """

    kind: type
    default: Any = None
    least: float = 0
    most: float = math.inf
    choices: tuple[str, ...] = ()

    def parse(self, text: str) -> Any:
        """The value.

        Raises:
            ValueError: not one; says what is expected.
        """
        try:
            value = self.kind(text)
        except ValueError:
            value = None
        if value is None or not self._allows(value):
            raise ValueError(f"expected {self.expected}, got {text!r}")
        return value

    def _allows(self, value: Any) -> bool:
        if self.kind is str:
            return value in self.choices if self.choices else bool(value)
        return self.least <= value <= self.most

    @property
    def expected(self) -> str:
        """In words."""
        if self.kind is str:
            return f"one of {', '.join(self.choices)}" if self.choices else "a text"
        what = "a whole number" if self.kind is int else "a number"
        if self.most < math.inf:
            return f"{what} between {self.least:g} and {self.most:g}"
        return f"{what} of at least {self.least:g}"


@dataclasses.dataclass(frozen=True)
class StepKind:
    """A line of the registry.

    Attributes:
        make: `make(context)`, or `make(context, argument)`.
        argument: None for a step that takes none.
    """

    make: Callable[..., Step]
    argument: Argument | None = None


def each(function: Callable[..., Outcome], argument: Argument | None = None) -> StepKind:
    """A step that needs nothing but the record (and its argument)."""

    def make(_: Context, *given: Any) -> Step:
        act = lambda record: function(record, *given)
        return Step(lambda: act)

    return StepKind(make, argument)
