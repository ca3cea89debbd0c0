"""What a scorer is given and what it gives back: the types that all scorers share."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Of a column. What each type means is said in `metrics.py`.
Value = bool | int | float | str | None | Sequence[int | float] | Mapping[str, Sequence[int]]
Outcome = Mapping[str, Value]
LABELS = ("predicted_label", "expected_label")  # columns of a classification
JUDGEMENTS = ("exact_match", "accuracy", "matches_schema", "within_length", "matches", "prompt_strict", "valid_json")
OTHER = "(other)"  # stands for every answer that is none of the labels


@dataclasses.dataclass(frozen=True)
class Case:
    """What an answer is scored against.

    Attributes:
        id: of the example.
        reference: text of the right answer.
        row: columns of the row of the data file, for scorers that need more than the reference.
    """

    id: str
    reference: str
    row: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class ScorerFailedError(ValueError):
    """A scorer could not judge an answer: it raised an error, or exceeded its bound on work."""


Scorer = Callable[[str, Case], Outcome]  # (answer, case) -> outcome


def is_right(outcome: Outcome) -> bool | None:
    """Whether the scorer calls the answer right as a whole; None where it does not judge that.

    It says so in the first bool column of `JUDGEMENTS` that it has.
    """
    return next((bool(outcome[name]) for name in JUDGEMENTS if isinstance(outcome.get(name), bool)), None)


def problem_of_outcome(outcome: Any) -> str | None:
    """Why this is no outcome, or None where it is one."""
    if not isinstance(outcome, Mapping):
        return f"an outcome is a dict, got {_shown(outcome)}"
    if not outcome:
        return "an outcome needs at least one column, got an empty dict"
    for column, value in outcome.items():
        if not isinstance(column, str):
            return f"names of columns are text, got {column!r}"
        if not _is_value(value):
            return (
                f"column {column!r} must be a finite plain bool, int, float, str, None, a list of numbers or "
                f"{{name: list of counts}}, got {_shown(value)}"
            )
    return None


def _is_value(value: Any) -> bool:
    if isinstance(value, Mapping):
        is_counts = lambda counts: isinstance(counts, list | tuple) and all(type(count) is int for count in counts)
        return all(isinstance(name, str) and is_counts(counts) for name, counts in value.items())
    if isinstance(value, list | tuple):
        return bool(value) and all(_is_number(item) for item in value)
    return value is None or isinstance(value, str | bool) or _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    return f"{repr(value)[:80]} ({type(value).__name__})"
