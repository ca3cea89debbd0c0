"""What is wrong with extracted values: a wrong one, a missing one, or one that was invented where nothing is said."""

import dataclasses
import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax.evaluation.json_answers import comparable_name
from sft_jax.evaluation.report.tables import TextTable


@dataclasses.dataclass(frozen=True)
class Faults:
    """Counts of the values of a field, or of several.

    Attributes:
        said: values that the documents state.
        wrong: of those: another one was given.
        missing: of those: none was given.
        silent: documents that do not state the field.
        invented: values that were given beyond those that are stated.
    """

    said: int = 0
    wrong: int = 0
    missing: int = 0
    silent: int = 0
    invented: int = 0

    def __add__(self, other: "Faults") -> "Faults":
        both = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Faults(*(one + another for one, another in both))


def faults_of(outcomes: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Faults]:
    """By field: what the scorers `json_fields` and `slots` counted, a row after the other.

    Args:
        outcomes: of the rows, with `{field: [hits, predicted, expected]}` in the column `field` or `slot`.
        names: of the fields. What is given under any other name is counted as invented under `other names`.
    """
    shown = {comparable_name(name): name for name in names}
    found = dict.fromkeys(names, Faults())
    other = 0
    for outcome in outcomes:
        counts = outcome["field" if "field" in outcome else "slot"]
        other += sum(predicted for name, (_, predicted, _) in counts.items() if name not in shown)
        for name, field in shown.items():
            hits, predicted, expected = counts.get(name, (0, 0, 0))
            wrong, missing = min(predicted, expected) - hits, max(0, expected - predicted)
            found[field] += Faults(expected, wrong, missing, int(not expected), max(0, predicted - expected))
    return found | ({"other names": Faults(invented=other)} if other else {})


def fault_tables(faults: Mapping[str, Mapping[str, Faults]]) -> list[TextTable]:
    """The faults of all methods in all fields, and those of each method by field."""
    together = {name: functools.reduce(operator.add, fields.values(), Faults()) for name, fields in faults.items()}
    by_field = [_table(fields, f"Faults by field, {name}", "field") for name, fields in faults.items()]
    return [_table(together, "Faults of all fields", "method"), *by_field]


def _table(lines: Mapping[str, Faults], title: str, first: str) -> TextTable:
    """A line for each name: the counts, with their shares."""
    rows = tuple(
        (
            *(name, f"{one.said:,}", _share(one.wrong, one.said), _share(one.missing, one.said)),
            *(f"{one.silent:,}", _share(one.invented, one.silent)),
        )
        for name, one in lines.items()
    )
    return TextTable(title, (first, "values stated", "wrong", "missing", "not stated", "invented"), rows)


def _share(count: int, of: int) -> str:
    return f"{count:,} ({100 * count / of:.0f} %)" if of else f"{count:,}"
