"""The verdict on the data: whether to clean it first, and the reasons for and against.

The verdict weighs findings, counts and earlier runs by the `THRESHOLDS`. The wording of rows plays no part: whether
tuning beats prompting or retrieval has to be measured.
"""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from sft_jax.audit.checked_data import CheckedData
from sft_jax.audit.checks.sizes import read_rows
from sft_jax.audit.findings import Finding
from sft_jax.audit.learning_curve import LearningCurve
from sft_jax.data.labels import labels_of

Decision = Literal["ready", "clean_first"]


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Where the verdict changes.

    Attributes:
        rows_a_label: labels with fewer rows are counted: so many examples are commonly put into a prompt.
        repeated: share of rows that are copies or nearly so: what is reported of the rest is no longer about the rest.
        conflicting_labels: share of rows whose prompt has another label elsewhere: of two such rows one is wrong, and
            no model can be right on both.
        overlap: share of held-out rows that are trained on: a score moves by as much as runs are compared for.
        agreement: kappa below which annotators do not agree enough to say which label is right ("substantial" begins
            at 0.61: Landis and Koch 1977).
        gain: relative fall of the loss from twice the data that is worth labelling for.
    """

    rows_a_label: int = 8
    repeated: float = 0.3
    conflicting_labels: float = 0.05
    overlap: float = 0.01
    agreement: float = 0.6
    gain: float = 0.01


THRESHOLDS = Thresholds()


class Reason(NamedTuple):
    """One reason, and the decision it speaks for."""

    text: str
    favours: Decision


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What to do with the data, and why.

    Attributes:
        decision: "clean_first" where any reason speaks for it, else "ready".
        reasons: all of them, those for the decision first.
    """

    decision: Decision
    reasons: tuple[Reason, ...]


def verdict(data: CheckedData, findings: Sequence[Finding], curve: LearningCurve | None = None) -> Verdict:
    """Weighs what is known.

    Args:
        data: the data.
        findings: what `run_checks` found in it.
        curve: of earlier runs on the same task.
    """
    reasons = [
        _size(data),
        *_dropped(data),
        *_rows_a_label(data),
        *_repeated(data, findings),
        *_conflicts(data, findings),
        *_agreement(findings),
        *_measurable(data, findings),
        *_errors(findings),
        *_more_data(curve),
    ]
    decision: Decision = "clean_first" if any(reason.favours == "clean_first" for reason in reasons) else "ready"
    return Verdict(decision, tuple(sorted(reasons, key=lambda reason: reason.favours != decision)))


def _size(data: CheckedData) -> Reason:
    lengths, supervised = data.examples.lengths, data.examples.supervised
    return Reason(f"{len(lengths):,} examples with {int(supervised.sum()):,} trained tokens", "ready")


def _dropped(data: CheckedData) -> Iterator[Reason]:
    if data.dropped:
        share = len(data.dropped) / read_rows(data)
        yield Reason(f"{share:.1%} of the rows that were read are dropped", "ready")


def _rows_a_label(data: CheckedData) -> Iterator[Reason]:
    labels = labels_of(data.views)
    if labels is None:
        return
    counts = collections.Counter(labels)
    if len(counts) == 1:
        yield Reason("all rows have the same label: there is nothing to learn", "clean_first")
        return
    middle = int(np.median(list(counts.values())))
    poor = sum(count < THRESHOLDS.rows_a_label for count in counts.values())
    fewer = f", {poor:,} of them with fewer than {THRESHOLDS.rows_a_label} rows" if poor else ""
    yield Reason(f"{len(counts):,} labels{fewer}; {middle:,} rows of the middle one", "ready")


def _repeated(data: CheckedData, findings: Sequence[Finding]) -> Iterator[Reason]:
    copies = sum(_numbers(findings, check).get("copies", 0) for check in ("exact_duplicates", "near_duplicates"))
    share = copies / max(len(data.records), 1)
    if share > THRESHOLDS.repeated:
        yield Reason(f"{share:.0%} of the rows repeat another one: they vary less than they are many", "clean_first")
    elif copies:
        yield Reason(f"{share:.1%} of the rows repeat another one, exactly or nearly", "ready")


def _conflicts(data: CheckedData, findings: Sequence[Finding]) -> Iterator[Reason]:
    rows = _numbers(findings, "contradictions").get("rows", 0)
    share = rows / max(len(data.records), 1)
    if rows and labels_of(data.views) is not None and share > THRESHOLDS.conflicting_labels:
        yield Reason(f"{share:.1%} of the rows have a label that another row contradicts", "clean_first")
    elif rows:
        yield Reason(f"{share:.1%} of the rows have a prompt that is answered otherwise elsewhere", "ready")


def _agreement(findings: Sequence[Finding]) -> Iterator[Reason]:
    for numbers in (finding.numbers for finding in findings if finding.check == "agreement"):
        agreed = f"annotators of {numbers['question']!r} agree with kappa {numbers['kappa']:.2f}"
        if numbers["kappa"] < THRESHOLDS.agreement:
            yield Reason(f"{agreed}, below {THRESHOLDS.agreement}: the task is not clear to people", "clean_first")
        else:
            yield Reason(agreed, "ready")


def _measurable(data: CheckedData, findings: Sequence[Finding]) -> Iterator[Reason]:
    if not data.held_out_records:
        yield Reason("there are no held-out rows: nobody will know whether tuning helped", "ready")
    for finding in findings:
        if finding.check in ("exact_overlap", "loose_overlap") and finding.severity != "error":
            share = finding.count / finding.numbers["measured"]
            favours: Decision = "clean_first" if share > THRESHOLDS.overlap else "ready"
            yield Reason(f"{finding.title} ({share:.1%})", favours)


def _errors(findings: Sequence[Finding]) -> Iterator[Reason]:
    for finding in findings:
        if finding.severity == "error":
            yield Reason(finding.title, "clean_first")


def _more_data(curve: LearningCurve | None) -> Iterator[Reason]:
    if curve is None:
        return
    last = curve.points[-1]
    gain, error = curve.gain / last.loss, None if curve.error is None else 2 * curve.error / last.loss
    sizes = ", ".join(f"{point.loss:.3f} at {point.examples:,} examples" for point in curve.points)
    if error is None:
        says = f"{gain:.1%}; too few sizes to say how sure that is"
    elif gain - error > THRESHOLDS.gain:
        says = f"{gain:.1%} ± {error:.1%}: more data still helps"
    elif gain + error < THRESHOLDS.gain:
        says = f"{gain:.1%} ± {error:.1%}: more data of this kind no longer helps"
    else:
        says = f"{gain:.1%} ± {error:.1%}: whether more data helps cannot be told"
    yield Reason(f"earlier runs: held-out loss {sizes}; twice the data is expected to lower it by {says}", "ready")


def _numbers(findings: Sequence[Finding], check: str) -> dict:
    """The numbers of a check's findings, taken together."""
    return {name: value for finding in findings if finding.check == check for name, value in finding.numbers.items()}
