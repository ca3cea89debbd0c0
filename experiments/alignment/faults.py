"""How wrong answers differ from right ones, value by value: in the pairs that DPO learns from, and of models."""

import collections
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sft_jax.evaluation.report.tables import TextTable

WRONG, MISSING, INVENTED = "another value", "null for a value", "a value for null"
UNREADABLE = "answers that are no object"
KINDS = (WRONG, MISSING, INVENTED, UNREADABLE)


def faults_of(answers: Iterable[tuple[str, str]]) -> collections.Counter[str]:
    """Counts of KINDS over (right answer, other answer).

    Right `{"year": 2004, "owner": null}` and `{"year": null, "owner": "XC90"}`: MISSING 1 and INVENTED 1. Values are
    compared as texts, as `json_extraction` does.
    """
    found: collections.Counter[str] = collections.Counter()
    for right, other in answers:
        read = _object(other)
        if read is None:
            found[UNREADABLE] += 1
            continue
        for name, value in (_object(right) or {}).items():
            if (kind := _fault(value, read.get(name))) is not None:
                found[kind] += 1
    return found


def of_pairs(path: Path) -> Iterable[tuple[str, str]]:
    """The answers of each pair of a file: the chosen one is the right one."""
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield row["chosen"][-1]["content"], row["rejected"][-1]["content"]


def faults_table(faults: Mapping[str, Mapping[str, int]]) -> TextTable:
    """A line for the pairs and for each model."""
    lines = ((name, *(f"{of_one[kind]:,}" for kind in KINDS)) for name, of_one in faults.items())
    return TextTable("What is wrong", ("", *KINDS), tuple(lines))


def _object(text: str) -> dict[str, Any] | None:
    try:
        read = json.loads(text)
    except ValueError:
        return None
    return read if isinstance(read, dict) else None


def _fault(right: Any, other: Any) -> str | None:
    if right == other or str(right) == str(other):
        return None
    if right is None:
        return INVENTED
    return MISSING if other is None else WRONG
