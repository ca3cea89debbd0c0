"""Mixtures: how much of each source is trained on, and in which order; nothing here knows lengths or tokens.

Two modes. With `epochs` on every source, an epoch of the mixture holds each example of a source that many times. With
`weight` on every source, weights are shares of what is drawn, and there is no epoch; a weight may change by step.
"""

import dataclasses
import fractions
import math
import re

import numpy as np
from jaxtyping import Float, Int

MIXTURE_PACKINGS = ("before", "after")
_KNOT = re.compile(r"\s*(\d+)\s*:\s*(\S+)\s*")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A weight that changes by step: straight lines between knots, constant before the first and after the last."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """The schedule of a text: "0.5", or knots "0: 1, 500: 0.25".

        Raises:
            ValueError: the text is neither, steps do not grow, or a weight is negative or not finite.
        """
        knots = [(0, text)] if ":" not in text else []
        for part in text.split(",") if ":" in text else ():
            found = _KNOT.fullmatch(part)
            if not found:
                raise ValueError(f"{text!r} is not a weight; give a number, or steps and weights: '0: 1, 500: 0.25'")
            knots.append((int(found[1]), found[2]))
        try:
            steps, values = zip(*((step, float(value)) for step, value in knots), strict=True)
        except ValueError:
            raise ValueError(
                f"{text!r} is not a weight; give a number, or steps and weights: '0: 1, 500: 0.25'"
            ) from None
        if not all(math.isfinite(value) and value >= 0 for value in values):
            raise ValueError(f"{text!r}: weights must be finite and not negative")
        if list(steps) != sorted(set(steps)):
            raise ValueError(f"{text!r}: steps must grow")
        return cls(steps, values)

    def at(self, steps: Int[np.ndarray, "draws"] | Float[np.ndarray, "draws"]) -> Float[np.ndarray, "draws"]:
        """The weight at each step."""
        return np.interp(steps, self.steps, self.values)


@dataclasses.dataclass(frozen=True)
class Source:
    """One source of a mixture; either `weight` or `epochs` says how much of it is trained on.

    Attributes:
        name: that of `TokenizedExamples.sources`.
        weight: share of what is drawn, relative to the other sources.
        epochs: how often each example appears in an epoch of the mixture; 0 with a weight.
        replacement: examples are drawn independently; otherwise each pass has every example once.
    """

    name: str
    weight: Schedule | None = None
    epochs: float = 0.0
    replacement: bool = False

    def examples_before(self, epoch: int, count: int) -> int:
        """How many examples are taken in the epochs of the mixture before `epoch`, of a source of `count` examples."""
        return math.floor(fractions.Fraction(str(self.epochs)) * count * epoch)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Sources that are trained on together.

    Attributes:
        sources: at least one; all with a weight, or all with epochs.
        packing: "before" mixing, so that a sequence has examples of one source and shares count sequences; or "after",
            so that examples of all sources share sequences and shares count examples.
    """

    sources: tuple[Source, ...]
    packing: str = "after"

    def __post_init__(self):
        problems = problems_of(self.sources)
        if self.packing not in MIXTURE_PACKINGS:
            problems.append(f"packing={self.packing!r} must be one of {', '.join(MIXTURE_PACKINGS)}")
        if problems:
            raise ValueError("\n".join(problems))

    @property
    def weighted(self) -> bool:
        """True where weights say how much is drawn."""
        return self.sources[0].weight is not None

    @property
    def changes(self) -> bool:
        """True where shares change by step."""
        return any(source.weight is not None and len(source.weight.steps) > 1 for source in self.sources)

    @property
    def knots(self) -> tuple[int, ...]:
        """The steps at which a weight begins or ends to change, in order; only the first where none does."""
        steps = {step for source in self.sources if source.weight is not None for step in source.weight.steps}
        return tuple(sorted(steps)) or (0,)

    def fixed_at(self, step: int) -> "Mixture":
        """The mixture whose shares are at every step those of this one at `step`."""
        if not self.changes:
            return self
        weights = [float(source.weight.at(np.array([step]))[0]) for source in self.sources]
        fixed = [
            dataclasses.replace(source, weight=Schedule((0,), (weight,)))
            for source, weight in zip(self.sources, weights, strict=True)
        ]
        return dataclasses.replace(self, sources=tuple(fixed))

    def shares(self, steps: np.ndarray) -> Float[np.ndarray, "draws sources"]:
        """The share of each source at each step; every draw's shares add up to 1."""
        weights = np.stack([source.weight.at(steps) for source in self.sources], axis=1)
        return weights / weights.sum(axis=1, keepdims=True)


def problems_of(sources: tuple[Source, ...]) -> list[str]:
    """What is wrong with the sources of a mixture; each problem names its source and field."""
    if not sources:
        return ["a mixture needs at least one source"]
    problems = []
    for source in sources:
        if not (math.isfinite(source.epochs) and source.epochs >= 0):
            problems.append(f"{source.name}.epochs={source.epochs} must be finite and not negative")
        if (source.weight is None) == (source.epochs == 0):
            problems.append(f"{source.name}: give either a weight or epochs")
        elif source.replacement and source.weight is None:
            problems.append(f"{source.name}.replacement: with epochs, each example appears as often as they say")
    kinds = {source.weight is None for source in sources}
    if len(kinds) > 1:
        with_epochs = ", ".join(source.name for source in sources if source.weight is None)
        problems.append(f"either all sources have epochs or all have a weight; those with epochs are {with_epochs}")
    elif not problems and sources[0].weight is not None:
        knots = np.unique([step for source in sources for step in source.weight.steps])
        total = np.sum([source.weight.at(knots) for source in sources], axis=0)
        if not total.all():
            problems.append(f"at step {knots[total == 0][0]} all weights are 0")
    return problems


def interleave(
    shares: Float[np.ndarray, "draws sources"], owed: Float[np.ndarray, "sources"]
) -> tuple[Int[np.ndarray, "draws"], Float[np.ndarray, "sources"]]:
    """The source of each draw: the one that is owed most, so that shares hold at any time.

    With shares 1/2, 1/4, 1/4 and nothing owed: 0 1 2 0, over and over. A source is never much more than one draw off.

    Args:
        shares: of each source at each draw; every draw's shares add up to 1.
        owed: draws that each source is owed from before: the sum of its shares less its draws.

    Returns:
        The source of each draw, and what is owed afterwards.
    """
    debts, drawn = owed.tolist(), []
    everyone = range(len(debts))
    for line in shares.tolist():
        debts = [debt + share for debt, share in zip(debts, line, strict=True)]
        chosen = max(everyone, key=lambda i: (debts[i] if line[i] > 0 else -math.inf, -i))
        debts[chosen] -= 1
        drawn.append(chosen)
    return np.array(drawn, np.int64), np.array(debts)
