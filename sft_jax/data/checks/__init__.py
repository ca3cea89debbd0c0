"""Checks: what is wrong with the data, found before it costs anything.

Beside the way of the data: they read records and tokenized rows and change nothing. One file a kind of check, a pure
function from a `Subject` to what it saw; `CHECKS` lists them all and says how grave what they find is.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from sft_jax.data.checks.duplicates import contradictions, exact_duplicates
from sft_jax.data.checks.findings import ANY, NEVER, SEVERITIES, Finding, Grave, Observation, Place, Severity, gravest
from sft_jax.data.checks.overlap import exact_overlap
from sft_jax.data.checks.subject import Subject, View, view_of
from sft_jax.data.checks.verdict import Reason, Verdict, verdict

__all__ = [
    "CHECKS",
    "SEVERITIES",
    "Check",
    "Finding",
    "Grave",
    "Observation",
    "Place",
    "Reason",
    "Severity",
    "Subject",
    "Verdict",
    "View",
    "gravest",
    "run_checks",
    "verdict",
    "view_of",
]


class Check(NamedTuple):
    """One check: what looks, how grave what it finds is, and whether it is cheap enough for the start of a run."""

    look: Callable[[Subject], list[Observation]]
    grave: Grave
    quick: bool = False


# Grave(warning, error): more than this share of the rows concerned.
CHECKS: dict[str, Check] = {
    # What a run measures would be wrong by more than a score's usual interval from a hundredth of the rows on.
    "exact_overlap": Check(exact_overlap, Grave(ANY, 0.01), quick=True),
    "exact_duplicates": Check(exact_duplicates, Grave(0.01, NEVER), quick=True),
    "contradictions": Check(contradictions, Grave(ANY, NEVER), quick=True),
}


def run_checks(
    subject: Subject, progress: Callable[[int, int], None] | None = None, *, quick: bool = False
) -> list[Finding]:
    """Looks at the data with all checks.

    Args:
        subject: the data.
        progress: called with (checks done, checks in all).
        quick: only those cheap enough for the start of a run.

    Returns:
        Findings, the gravest first; equally grave ones in the order of `CHECKS`.
    """
    chosen = {name: check for name, check in CHECKS.items() if check.quick or not quick}
    findings = []
    for done, (name, check) in enumerate(chosen.items(), 1):
        for seen in check.look(subject):
            fields = {field.name: getattr(seen, field.name) for field in dataclasses.fields(seen)}
            del fields["share"]
            findings.append(Finding(name, check.grave.severity(seen), **fields))
        if progress is not None:
            progress(done, len(chosen))
    return sorted(findings, key=lambda finding: -SEVERITIES.index(finding.severity))
