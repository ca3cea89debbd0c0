"""Checks of the data, made before anything is trained.

A check is a pure function from a `CheckedData` to observations; it reads records and tokens and changes nothing. There
is one file for each kind of check; `CHECKS` lists them all, with the thresholds that give a finding its severity.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from sft_jax.audit.checked_data import CheckedData
from sft_jax.audit.checks.agreement import agreement
from sft_jax.audit.checks.answers import boilerplate, empty_answers, one_word_answers, repeated_answers
from sft_jax.audit.checks.balance import group_balance, label_balance
from sft_jax.audit.checks.duplicates import contradictions, exact_duplicates
from sft_jax.audit.checks.encoding import control_characters, lost_characters, mojibake, white_space
from sft_jax.audit.checks.endings import end_of_turn, text_ends
from sft_jax.audit.checks.json_answers import json_answers
from sft_jax.audit.checks.near_duplicates import near_contradictions, near_duplicates
from sft_jax.audit.checks.new_tokens import ends_in_contents, new_tokens
from sft_jax.audit.checks.overlap import exact_overlap, loose_overlap, ngram_overlap
from sft_jax.audit.checks.placeholders import placeholders
from sft_jax.audit.checks.private_data import contact_details, keys
from sft_jax.audit.checks.rendered_text import rendered_text
from sft_jax.audit.checks.scripts import mixed_words, scripts
from sft_jax.audit.checks.sizes import dropped_rows, sizes
from sft_jax.audit.checks.split_turns import split_turns
from sft_jax.audit.checks.vocabulary import vocabulary
from sft_jax.audit.findings import ANY, NEVER, SEVERITIES, Finding, Observation, Place, Severity, Thresholds, worst
from sft_jax.audit.learning_curve import LearningCurve, RunPoint, learning_curve
from sft_jax.audit.verdict import Reason, Verdict, verdict

__all__ = [
    "CHECKS",
    "SEVERITIES",
    "Check",
    "CheckedData",
    "Finding",
    "LearningCurve",
    "Observation",
    "Place",
    "Reason",
    "RunPoint",
    "Severity",
    "Thresholds",
    "Verdict",
    "chosen_checks",
    "learning_curve",
    "run_checks",
    "verdict",
    "worst",
]


class Check(NamedTuple):
    """One check.

    Attributes:
        look: the function.
        thresholds: how severe what it finds is.
        quick: whether it is cheap enough for the start of a run.
        by_keys: whether it reads no texts (it counts, or compares hashes), and so looks at all records where the
            first alone are in memory.
    """

    look: Callable[[CheckedData], list[Observation]]
    thresholds: Thresholds
    quick: bool = False
    by_keys: bool = False


# How severe a finding is: Thresholds(warning, error), each a share of the rows that is exceeded; only this decides it.
#   error    what is trained or measured is wrong whatever else is done
#   warning  somebody should look and decide
#   info     good to know
CHECKS: dict[str, Check] = {
    "sizes": Check(sizes, Thresholds(NEVER, NEVER)),
    # Some are always too long; half of them says that a format or a length is not what was thought.
    "dropped_rows": Check(dropped_rows, Thresholds(0.01, 0.5), quick=True, by_keys=True),
    # One is a mask that is wrong, not a row that is.
    "end_of_turn": Check(end_of_turn, Thresholds(ANY, ANY), quick=True),
    # Right where texts are cut from longer ones, as in continued pretraining; the option says that it is meant.
    "text_ends": Check(text_ends, Thresholds(ANY, NEVER), quick=True),
    # Some want every token of a conversation; most have rendered it for a trainer that finds the answers itself.
    "rendered_text": Check(rendered_text, Thresholds(ANY, NEVER), quick=True),
    "split_turns": Check(split_turns, Thresholds(ANY, NEVER), quick=True),
    "new_tokens": Check(new_tokens, Thresholds(NEVER, NEVER), quick=True),
    # A document about templates, or one in which the token is meant to end a turn: somebody should look.
    "ends_in_contents": Check(ends_in_contents, Thresholds(ANY, NEVER), quick=True),
    # A hundredth moves a score by as much as what runs are compared for.
    "exact_overlap": Check(exact_overlap, Thresholds(ANY, 0.01), quick=True, by_keys=True),
    "loose_overlap": Check(loose_overlap, Thresholds(ANY, 0.05)),
    "ngram_overlap": Check(ngram_overlap, Thresholds(0.01, NEVER)),
    "exact_duplicates": Check(exact_duplicates, Thresholds(0.01, NEVER), quick=True, by_keys=True),
    "near_duplicates": Check(near_duplicates, Thresholds(0.05, NEVER)),
    # Right where a question has many answers; the check cannot know.
    "contradictions": Check(contradictions, Thresholds(ANY, NEVER), quick=True, by_keys=True),
    "near_contradictions": Check(near_contradictions, Thresholds(ANY, NEVER)),
    "agreement": Check(agreement, Thresholds(0.2, NEVER)),
    # Shares of labels, for those with few rows.
    "label_balance": Check(label_balance, Thresholds(ANY, NEVER)),
    "group_balance": Check(group_balance, Thresholds(ANY, NEVER)),
    "empty_answers": Check(empty_answers, Thresholds(ANY, 0.05), quick=True),
    "one_word_answers": Check(one_word_answers, Thresholds(0.05, NEVER)),
    "repeated_answers": Check(repeated_answers, Thresholds(0.01, NEVER)),
    "boilerplate": Check(boilerplate, Thresholds(0.2, NEVER)),
    # A few are text about templates; in a tenth of the rows they are the template.
    "placeholders": Check(placeholders, Thresholds(ANY, 0.1)),
    "json_answers": Check(json_answers, Thresholds(ANY, 0.05)),
    "mojibake": Check(mojibake, Thresholds(ANY, 0.05)),
    "lost_characters": Check(lost_characters, Thresholds(ANY, 0.05)),
    "control_characters": Check(control_characters, Thresholds(ANY, NEVER)),
    "white_space": Check(white_space, Thresholds(0.05, NEVER)),
    "scripts": Check(scripts, Thresholds(ANY, NEVER)),
    "mixed_words": Check(mixed_words, Thresholds(ANY, NEVER)),
    "contact_details": Check(contact_details, Thresholds(ANY, NEVER)),
    # The forms of keys are unmistakable, and what a model has learnt cannot be taken back.
    "keys": Check(keys, Thresholds(ANY, ANY)),
    "vocabulary": Check(vocabulary, Thresholds(ANY, NEVER)),
}


def chosen_checks(quick: bool) -> dict[str, Check]:
    """All checks, or those cheap enough for the start of a run."""
    return {name: check for name, check in CHECKS.items() if check.quick or not quick}


def run_checks(
    data: CheckedData, progress: Callable[[int, int], None] | None = None, *, quick: bool = False
) -> list[Finding]:
    """Looks at the data with all checks.

    Args:
        data: the data.
        progress: called with (checks done, checks in all).
        quick: only those cheap enough for the start of a run.

    Returns:
        Findings, the worst first; equally severe ones in the order of `CHECKS`.
    """
    chosen = chosen_checks(quick)
    findings = []
    for done, (name, check) in enumerate(chosen.items(), 1):
        for seen in check.look(data):
            fields = {field.name: getattr(seen, field.name) for field in dataclasses.fields(seen)}
            del fields["share"]
            findings.append(Finding(name, check.thresholds.severity(seen), **fields))
        if progress is not None:
            progress(done, len(chosen))
    return sorted(findings, key=lambda finding: -SEVERITIES.index(finding.severity))
