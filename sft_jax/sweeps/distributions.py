"""What values of a field are drawn from, in random search and by other searches.

A draw is a function of a number in [0, 1): the same on every machine, since values are rounded to four digits, which
is also what the names of runs show of them.
"""

import abc
import dataclasses
import math
from typing import Any

_DIGITS = 4


@dataclasses.dataclass(frozen=True)
class Distribution(abc.ABC):
    """Values of a field with their probabilities."""

    @abc.abstractmethod
    def at(self, quantile: float) -> Any:
        """The value at a quantile in [0, 1)."""


@dataclasses.dataclass(frozen=True)
class Uniform(Distribution):
    """Numbers between two, all alike; or all alike in their logarithm."""

    low: float
    high: float
    log: bool = False

    def at(self, quantile: float) -> float:
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            value = math.exp(low + (high - low) * quantile)
        else:
            value = self.low + (self.high - self.low) * quantile
        return self.rounded(value)

    def rounded(self, value: float) -> float:
        """The nearest number of four digits between the two."""
        return min(max(float(f"{value:.{_DIGITS}g}"), float(self.low)), float(self.high))


@dataclasses.dataclass(frozen=True)
class Integers(Distribution):
    """Whole numbers between two, both included."""

    low: int
    high: int

    def at(self, quantile: float) -> int:
        return self.low + int(quantile * (self.high - self.low + 1))


@dataclasses.dataclass(frozen=True)
class Choice(Distribution):
    """One of some values."""

    choices: tuple[Any, ...]

    def at(self, quantile: float) -> Any:
        return self.choices[int(quantile * len(self.choices))]


def uniform(low: float, high: float) -> Distribution:
    """Numbers from `low` to `high`.

    >>> uniform(0.0, 0.2).at(0.25)
    0.05

    Raises:
        ValueError: they are no numbers in that order.
    """
    _check_bounds("uniform", low, high)
    return Uniform(low, high)


def log_uniform(low: float, high: float) -> Distribution:
    """Numbers from `low` to `high` whose logarithms are uniform: each power of ten is as likely as the next.

    >>> log_uniform(1e-5, 1e-3).at(0.5)
    0.0001

    Raises:
        ValueError: they are no numbers above 0 in that order.
    """
    _check_bounds("log_uniform", low, high)
    if low <= 0:
        raise ValueError(f"log_uniform({low}, {high}): expected numbers above 0")
    return Uniform(low, high, log=True)


def integers(low: float, high: float) -> Distribution:
    """Whole numbers from `low` to `high`, both included.

    >>> [integers(1, 4).at(quantile) for quantile in (0.0, 0.5, 0.999)]
    [1, 3, 4]

    Raises:
        ValueError: they are no whole numbers in that order.
    """
    _check_bounds("integers", low, high)
    if not isinstance(low, int) or not isinstance(high, int):
        raise ValueError(f"integers({low}, {high}): expected whole numbers")
    return Integers(int(low), int(high))


def choice(*choices: Any) -> Distribution:
    """One of some values, all alike.

    >>> choice("adamw", "lion").at(0.7)
    'lion'

    Raises:
        ValueError: there are none.
    """
    if not choices:
        raise ValueError("choice(): there is nothing to choose from")
    return Choice(choices)


def _check_bounds(where: str, low: Any, high: Any) -> None:
    numbers = all(isinstance(bound, (int, float)) and math.isfinite(bound) for bound in (low, high))
    if not numbers or low >= high:
        raise ValueError(f"{where}({low!r}, {high!r}): expected two numbers, the lower one first")
