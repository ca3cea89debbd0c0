"""The verdict: whether the data is enough, clean and varied enough to tune on, with its reasons.

The last word of the checks. It weighs findings, counts and earlier runs; `THRESHOLDS` says by what, and why.
"""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from sft_jax.data.checks.balance import labels_of
from sft_jax.data.checks.findings import Finding
from sft_jax.data.checks.learning_curve import LearningCurve
from sft_jax.data.checks.shingles import words
from sft_jax.data.checks.subject import Subject
from sft_jax.data.views import View

Decision = Literal["tune", "clean_first", "prompt_or_retrieval_first"]
_ORDER: tuple[Decision, ...] = ("prompt_or_retrieval_first", "clean_first", "tune")

_SAMPLE = 2000  # rows of which the answers are looked into


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Where the verdict turns.

    Attributes:
        rows: fewer can stand in the prompt as examples instead, which costs nothing to change.
        many_rows: careful examples from which on a base model was taught to follow all kinds of instructions (LIMA:
            Zhou et al. 2023).
        rows_a_label: fewer rows of a label are fewer than what is commonly put into a prompt (8 shots).
        poor_labels: share of labels with so few rows.
        repeated: share of rows that are copies or nearly so: what is reported of the rest is no longer about the rest.
        conflicting_labels: share of rows whose prompt has another label elsewhere: of two such rows one is wrong, and
            no model can be right on both.
        overlap: share of held-out rows that are trained on: a score moves by as much as runs are compared for.
        agreement: kappa below which annotators do not agree enough to say which label is right ("substantial" begins
            at 0.61: Landis and Koch 1977).
        fact_words, fact_share, fact_forms: answers of so many words in the middle, of which such a share is not in the
            prompt, to prompts of which such a share begins with the same three words: facts, asked for one by one.
            Retrieval gives facts better than tuning (Ovadia et al. 2024), and new facts learnt by tuning make a model
            invent others (Gekhman et al. 2024).
        gain: relative fall of the loss from twice the data that is worth labelling for.
    """

    rows: int = 50
    many_rows: int = 1000
    rows_a_label: int = 8
    poor_labels: float = 0.5
    repeated: float = 0.3
    conflicting_labels: float = 0.05
    overlap: float = 0.01
    agreement: float = 0.6
    fact_words: int = 50
    fact_share: float = 0.8
    fact_forms: float = 0.1
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
        decision: "tune", "clean_first" or "prompt_or_retrieval_first": what the gravest reason speaks for.
        reasons: all of them, those for the decision first.
    """

    decision: Decision
    reasons: tuple[Reason, ...]


def verdict(subject: Subject, findings: Sequence[Finding], curve: LearningCurve | None = None) -> Verdict:
    """Weighs what is known.

    Args:
        subject: the data.
        findings: what `run_checks` found in it.
        curve: of earlier runs on the same task.
    """
    reasons = [
        _enough_rows(subject),
        *_rows_a_label(subject),
        *_facts(subject),
        *_repeated(subject, findings),
        *_conflicts(subject, findings),
        *_agreement(findings),
        *_measurable(subject, findings),
        *_errors(findings),
        *_more_data(curve),
    ]
    decision = min((reason.favours for reason in reasons), key=_ORDER.index)
    return Verdict(decision, tuple(sorted(reasons, key=lambda reason: reason.favours != decision)))


def _enough_rows(subject: Subject) -> Reason:
    rows = len(subject.rows)
    if rows < THRESHOLDS.rows:
        text = f"{rows:,} rows are fewer than {THRESHOLDS.rows}: put examples into the prompt, or label more"
        return Reason(text, "prompt_or_retrieval_first")
    if rows < THRESHOLDS.many_rows:
        return Reason(f"{rows:,} rows: enough for one narrow task; compare with a prompt that holds examples", "tune")
    return Reason(f"{rows:,} rows are enough", "tune")


def _rows_a_label(subject: Subject) -> Iterator[Reason]:
    labels = labels_of(subject.views)
    if labels is None:
        return
    counts = collections.Counter(labels)
    poor = sum(count < THRESHOLDS.rows_a_label for count in counts.values())
    if len(counts) == 1:
        yield Reason("all rows have the same label: there is nothing to learn", "clean_first")
    elif poor > THRESHOLDS.poor_labels * len(counts):
        text = f"{poor:,} of {len(counts):,} labels have fewer than {THRESHOLDS.rows_a_label} rows"
        yield Reason(f"{text}: a prompt can hold as many", "prompt_or_retrieval_first")
    else:
        middle = int(np.median(list(counts.values())))
        yield Reason(f"{len(counts):,} labels, {middle:,} rows of the middle one", "tune")


def _facts(subject: Subject) -> Iterator[Reason]:
    sample = subject.views[:: max(1, -(-len(subject.views) // _SAMPLE))]
    views = [view for view in sample if view.asked.strip() and view.answer.strip()]
    if not views or labels_of(subject.views) is not None:
        return
    middle = int(np.median([len(words(view.answer)) for view in views]))
    share = float(np.mean([_share_not_asked(view) for view in views]))
    begins = collections.Counter(" ".join(words(subject.main(view))[:3]) for view in views)
    form, count = begins.most_common(1)[0]
    is_new = middle >= THRESHOLDS.fact_words and share >= THRESHOLDS.fact_share
    if is_new and count > THRESHOLDS.fact_forms * len(views):
        yield Reason(
            f"answers of {middle:,} words of which {share:.0%} are not in the prompt, and {count / len(views):.0%} of "
            f"the prompts begin with {form!r}: facts asked for one by one, which retrieval gives better than tuning",
            "prompt_or_retrieval_first",
        )


def _share_not_asked(view: View) -> float:
    answer = set(words(view.answer))
    return len(answer - set(words(view.asked))) / max(len(answer), 1)


def _repeated(subject: Subject, findings: Sequence[Finding]) -> Iterator[Reason]:
    copies = sum(_numbers(findings, check).get("copies", 0) for check in ("exact_duplicates", "near_duplicates"))
    share = copies / max(len(subject.records), 1)
    if share > THRESHOLDS.repeated:
        yield Reason(f"{share:.0%} of the rows repeat another one: they vary less than they are many", "clean_first")
    elif copies:
        yield Reason(f"{share:.1%} of the rows repeat another one, exactly or nearly", "tune")


def _conflicts(subject: Subject, findings: Sequence[Finding]) -> Iterator[Reason]:
    rows = _numbers(findings, "contradictions").get("rows", 0)
    share = rows / max(len(subject.records), 1)
    if rows and labels_of(subject.views) is not None and share > THRESHOLDS.conflicting_labels:
        yield Reason(f"{share:.1%} of the rows have a label that another row contradicts", "clean_first")
    elif rows:
        yield Reason(f"{share:.1%} of the rows have a prompt that is answered otherwise elsewhere", "tune")


def _agreement(findings: Sequence[Finding]) -> Iterator[Reason]:
    for numbers in (finding.numbers for finding in findings if finding.check == "agreement"):
        agreed = f"annotators of {numbers['question']!r} agree with kappa {numbers['kappa']:.2f}"
        if numbers["kappa"] < THRESHOLDS.agreement:
            yield Reason(f"{agreed}, below {THRESHOLDS.agreement}: the task is not clear to people", "clean_first")
        else:
            yield Reason(agreed, "tune")


def _measurable(subject: Subject, findings: Sequence[Finding]) -> Iterator[Reason]:
    if not subject.held_out_records:
        yield Reason("there are no held-out rows: nobody will know whether tuning helped", "tune")
    for finding in findings:
        if finding.check in ("exact_overlap", "loose_overlap") and finding.severity != "error":
            share = finding.count / finding.numbers["measured"]
            favours: Decision = "clean_first" if share > THRESHOLDS.overlap else "tune"
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
    sizes = ", ".join(f"{point.loss:.3f} at {point.examples:,} rows" for point in curve.points)
    if error is None:
        says = f"{gain:.1%}; too few sizes to say how sure that is"
    elif gain - error > THRESHOLDS.gain:
        says = f"{gain:.1%} ± {error:.1%}: more data still helps"
    elif gain + error < THRESHOLDS.gain:
        says = f"{gain:.1%} ± {error:.1%}: more data of this kind no longer helps"
    else:
        says = f"{gain:.1%} ± {error:.1%}: whether more data helps cannot be told"
    yield Reason(f"earlier runs: held-out loss {sizes}; twice the data is expected to lower it by {says}", "tune")


def _numbers(findings: Sequence[Finding], check: str) -> dict:
    """The numbers of a check's findings, taken together."""
    return {name: value for finding in findings if finding.check == check for name, value in finding.numbers.items()}
