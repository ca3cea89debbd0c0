"""What checks say: a finding, how grave it is, and the rows it names.

A check observes; `run_checks` turns what it observed into findings, with the severity that the table of checks gives to
such a share of the rows. Nothing else decides what is grave.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

Severity = Literal["info", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")  # from light to grave

EXAMPLES_SHOWN = 5
NEVER = math.inf
ANY = 0.0
_EXCERPT = 200  # characters of a row that are shown


class Place(NamedTuple):
    """Where something was found: the id of the row (file and line), and what stands there."""

    row_id: str
    text: str


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing to know about the data.

    Attributes:
        check: name of the check in `CHECKS`.
        severity: "error": what is trained or measured would be wrong; "warning": somebody should look; "info".
        title: what was found, with its number, as one line.
        count: how many rows.
        examples: the first of them.
        advice: what to do; empty where there is nothing to do.
        numbers: plain values, ready for JSON.
    """

    check: str
    severity: Severity
    title: str
    count: int
    examples: tuple[Place, ...] = ()
    advice: str = ""
    numbers: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Observation:
    """What a check saw, before it is judged; `share` is that of the rows concerned. The rest is as in `Finding`."""

    title: str
    count: int
    share: float
    examples: tuple[Place, ...] = ()
    advice: str = ""
    numbers: dict = dataclasses.field(default_factory=dict)


class Grave(NamedTuple):
    """Above which share of the rows a finding is a warning, and an error; `ANY` and `NEVER` are such shares."""

    warning: float
    error: float

    def severity(self, observation: Observation) -> Severity:
        """How grave that share of rows is; what concerns no row is for information."""
        if not observation.count:
            return "info"
        return "error" if observation.share > self.error else "warning" if observation.share > self.warning else "info"


def excerpt(text: str, around: int = 0) -> str:
    """At most 200 characters of a text, on one line, with what stands at character `around`."""
    start = max(0, min(around - _EXCERPT // 2, len(text) - _EXCERPT))
    piece = text[start : start + _EXCERPT]
    line = piece.replace("\r", "\\r").replace("\n", "\\n")
    return ("…" if start else "") + line + ("…" if start + _EXCERPT < len(text) else "")


def places(pairs: Iterable[tuple[str, str]]) -> tuple[Place, ...]:
    """The first of (row id, text) pairs."""
    shown = []
    for row_id, text in pairs:
        if len(shown) == EXAMPLES_SHOWN:
            break
        shown.append(Place(row_id, excerpt(text)))
    return tuple(shown)


def gravest(findings: Sequence[Finding]) -> Severity:
    """The highest severity among findings; "info" where there are none."""
    return max((finding.severity for finding in findings), key=SEVERITIES.index, default="info")
