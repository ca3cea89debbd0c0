"""What checks say: a finding, how severe it is, and the rows it names.

A check makes observations; `run_checks` makes findings of them. The severity of a finding depends only on the share of
rows concerned and on the thresholds that `CHECKS` (checks/__init__.py) gives for the check.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple, TypeVar

from sft_jax.data.texts import private_spans, redacted

Hit = TypeVar("Hit")
Severity = Literal["info", "warning", "error"]
FAIL_ON = ("error", "warning", "never")  # what `config.data.fail_on` may be
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")  # from light to severe

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


class Thresholds(NamedTuple):
    """Above which share of the rows a finding is a warning, and an error; `ANY` and `NEVER` are such shares."""

    warning: float
    error: float

    def severity(self, observation: Observation) -> Severity:
        """How severe that share of rows is; what concerns no row is for information."""
        if not observation.count:
            return "info"
        return "error" if observation.share > self.error else "warning" if observation.share > self.warning else "info"


def excerpt(text: str) -> str:
    """At most 200 characters of a text, on one line."""
    line = text[:_EXCERPT].replace("\r", "\\r").replace("\n", "\\n")
    return line + ("…" if len(text) > _EXCERPT else "")


def excerpt_around(text: str, at: int) -> str:
    """The text around character `at`; what looks private is redacted before anything is cut."""
    at = min([at, *(start for start, end in private_spans(text) if start < at < end)])
    before = redacted(text[:at])
    start = max(0, len(before) - _EXCERPT // 2)
    return ("…" if start else "") + before[start:] + redacted(text[at:])


def places(pairs: Iterable[tuple[str, str]]) -> tuple[Place, ...]:
    """The first of (row id, text) pairs, with what looks private redacted."""
    shown = []
    for row_id, text in pairs:
        if len(shown) == EXAMPLES_SHOWN:
            break
        shown.append(Place(row_id, excerpt(redacted(text))))
    return tuple(shown)


def counted(count: int, one: str, many: str) -> str:
    """counted(1, "row has", "rows have") -> "1 row has"."""
    return f"{count:,} {one if count == 1 else many}"


def observed(
    title: str,
    hits: Sequence[Hit],
    of: int,
    show: Callable[[Hit], tuple[str, str]],
    advice: str,
    numbers: dict | None = None,
) -> list[Observation]:
    """One observation of all that a check found, or none where it found nothing.

    Args:
        title: see `Observation`.
        hits: whatever the check found, one for each row concerned.
        of: how many there could have been.
        show: from one of them to (row id, text).
        advice: see `Observation`.
        numbers: see `Observation`.
    """
    if not hits:
        return []
    return [Observation(title, len(hits), len(hits) / of, places(map(show, hits)), advice, numbers or {})]


def worst(findings: Sequence[Finding]) -> Severity:
    """The highest severity among findings; "info" where there are none."""
    return max((finding.severity for finding in findings), key=SEVERITIES.index, default="info")


class DataFindingsError(ValueError):
    """Findings with which nothing is to be trained on such data. The message says which."""


def severe_enough(findings: Sequence[Finding], fail_on: str) -> list[Finding]:
    """The findings of at least the severity `fail_on`; none for "never"."""
    if fail_on == "never":
        return []
    least: Callable[[Severity], int] = SEVERITIES.index
    return [finding for finding in findings if least(finding.severity) >= SEVERITIES.index(fail_on)]


def check_findings(findings: Sequence[Finding], fail_on: str) -> None:
    """Stops a run on data with such findings.

    Raises:
        DataFindingsError: there are some; says how to go on.
    """
    found = severe_enough(findings, fail_on)
    if found:
        lines = [f"  {finding.severity}: {finding.title}. {finding.advice}" for finding in found]
        raise DataFindingsError(
            "\n".join(
                [
                    "nothing is trained on data with these findings:",
                    *lines,
                    "python -m sft_jax.preview with the same config shows the rows. To train on it all the same: "
                    "--config.data.fail_on=never",
                ]
            )
        )


def most_severe_first(findings: Sequence[Finding]) -> list[Finding]:
    """The most severe first, else in the order they come in."""
    return sorted(findings, key=lambda finding: -SEVERITIES.index(finding.severity))
