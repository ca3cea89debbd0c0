"""Outcomes of answers, for tests of scorers and of what is made of their outcomes."""

from sft_jax.evaluation.scorers import Case, Outcome, make_scorer
from sft_jax.evaluation.scoring import score_examples


def scored(spec: str, answers: list[str], references: list[str], rows=None, **options) -> list[Outcome]:
    """The outcomes of answers against references, with ids that count."""
    rows = rows or [{}] * len(references)
    cases = [Case(str(number), *each) for number, each in enumerate(zip(references, rows, strict=True))]
    return score_examples(make_scorer(spec, options), answers, cases)


def score(spec: str, answer: str, reference: str = "", row=None, **options) -> Outcome:
    """The outcome of one answer."""
    return scored(spec, [answer], [reference], [row or {}], **options)[0]
