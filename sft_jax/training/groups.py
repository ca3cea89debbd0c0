"""Groups of parameters with a learning rate or a weight decay of their own, by patterns over canonical paths."""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence

from sft_jax.models.variables import canonical_path

_OPTIONS = ("learning_rate_factor", "weight_decay")
_FLAG = "--config.optimizer.groups"


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters that one pattern names.

    Attributes:
        pattern: regular expression that a canonical path matches from its start to its end.
        learning_rate_factor: their learning rate as a multiple of the run's.
        weight_decay: theirs, norms, biases and sinks included; None leaves that of the run.
    """

    pattern: str
    learning_rate_factor: float = 1.0
    weight_decay: float | None = None


def parse_groups(texts: Iterable[str]) -> tuple[Group, ...]:
    """`"adapters/.*/b: learning_rate_factor=16, weight_decay=0"` -> a Group.

    Raises:
        ValueError: a text is not of that form; names the flag.
    """
    return tuple(_parse(text) for text in texts)


def _parse(text: str) -> Group:
    pattern, colon, options = text.rpartition(":")  # a pattern may hold colons, options cannot
    numbers: dict[str, float] = {}
    for option in options.split(","):
        name, _, value = (part.strip() for part in option.partition("="))
        number = _number(value)
        if not colon or name not in _OPTIONS or name in numbers or number is None:
            raise ValueError(
                f"{_FLAG}: {text!r} is not '<pattern>: <option>=<number>[, <option>=<number>]' "
                f"with options {', '.join(_OPTIONS)} and numbers of at least 0"
            )
        numbers[name] = number
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{_FLAG}: {pattern!r} is not a regular expression ({error})") from error
    return Group(pattern, **numbers)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def group_of(path: str, patterns: Sequence[str]) -> int | None:
    """Index of the first pattern that matches the parameter at `path`; None where none does."""
    name = canonical_path(path)
    return next((index for index, pattern in enumerate(patterns) if re.fullmatch(pattern, name)), None)


def check_groups(groups: Sequence[Group], paths: Iterable[str]) -> None:
    """Checks that each group holds some of the trained parameters.

    Raises:
        ValueError: a group holds none, or earlier groups hold all that its pattern matches; lists the paths.
    """
    paths = list(paths)
    patterns = [group.pattern for group in groups]
    held = {group_of(path, patterns) for path in paths}
    for index, pattern in enumerate(patterns):
        if index not in held:
            names = ", ".join(sorted({canonical_path(path) for path in paths}))
            raise ValueError(
                f"{_FLAG}: {pattern!r} matches no trained parameter that an earlier group does not hold; trained are: "
                f"{names}"
            )
