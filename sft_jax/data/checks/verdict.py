"""The verdict: whether the data is worth tuning on, with its reasons.

The last word of the checks. Reads findings and counts, no text.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

from sft_jax.data.checks.findings import Finding
from sft_jax.data.checks.subject import Subject

Decision = Literal["tune", "clean_first", "prompt_or_retrieval_first"]

# Instruction tuning has been shown to work from about a thousand careful examples on (LIMA: Zhou et al. 2023); with
# under a hundred, examples in the prompt are as good and cost nothing to change.
FEWEST_ROWS = 100


class Reason(NamedTuple):
    """One reason, and the decision it speaks for."""

    text: str
    favours: Decision


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What to do with the data, and why.

    Attributes:
        decision: "tune", "clean_first" or "prompt_or_retrieval_first".
        reasons: all of them, those for the decision first.
    """

    decision: Decision
    reasons: tuple[Reason, ...]


def verdict(subject: Subject, findings: Sequence[Finding]) -> Verdict:
    """Weighs what was found."""
    reasons = [_enough_rows(subject), *_errors(findings)]
    order: tuple[Decision, ...] = ("prompt_or_retrieval_first", "clean_first", "tune")
    decision = min((reason.favours for reason in reasons), key=order.index)
    return Verdict(decision, tuple(sorted(reasons, key=lambda reason: reason.favours != decision)))


def _enough_rows(subject: Subject) -> Reason:
    rows = len(subject.rows)
    if rows < FEWEST_ROWS:
        return Reason(f"{rows:,} rows: fewer than {FEWEST_ROWS}", "prompt_or_retrieval_first")
    return Reason(f"{rows:,} rows", "tune")


def _errors(findings: Sequence[Finding]) -> list[Reason]:
    return [Reason(finding.title, "clean_first") for finding in findings if finding.severity == "error"]
