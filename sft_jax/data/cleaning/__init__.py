"""Cleaning: the steps of `config.data.cleaning`, through which records go in that order before they are rendered.

A step keeps a record, changes it or drops it, and every change and drop is noted with its reason (`CleaningLog`).
`STEPS` is the registry; a new step is a function from a record to what becomes of it, and a line here.
"""

from sft_jax.data import texts
from sft_jax.data.cleaning import answers, balance, duplicates, private, similar, text
from sft_jax.data.cleaning.pipeline import (
    Changed,
    Cleaner,
    CleaningLog,
    Sink,
    cleaning_values,
    dropped_by_a_step,
    names_of_steps,
    problems_of,
)
from sft_jax.data.cleaning.registry import STEPS
from sft_jax.data.cleaning.steps import Argument, Change, Context, Drop, Outcome, Step, StepKind, each
from sft_jax.data.similarity.groups import SIMILARITY

__all__ = [
    "STEPS",
    "Argument",
    "Change",
    "Changed",
    "Cleaner",
    "CleaningLog",
    "Context",
    "Drop",
    "Outcome",
    "Sink",
    "Step",
    "StepKind",
    "cleaning_values",
    "dropped_by_a_step",
    "each",
    "names_of_steps",
    "problems_of",
]

_COUNT = Argument(int, least=1)

STEPS |= {
    "strip_whitespace": each(text.strip_whitespace),
    "normalize_whitespace": each(text.normalize_whitespace),
    "normalize_unicode": each(text.normalize_unicode),
    "remove_control_characters": each(text.remove_control_characters),
    "fix_encoding": each(text.fix_encoding),
    "drop_leading_answers": each(answers.drop_leading_answers),
    "drop_empty_answers": each(answers.drop_empty_answers),
    "drop_answers_shorter_than": each(answers.drop_answers_shorter_than, _COUNT),
    "drop_answers_longer_than": each(answers.drop_answers_longer_than, _COUNT),
    "drop_invalid_json_answers": each(answers.drop_invalid_json_answers),
    "redact_emails": each(private.redacting(texts.EMAIL, "e-mail addresses"), Argument(str, "[EMAIL]")),
    "redact_phones": each(private.redacting(texts.PHONE, "phone numbers"), Argument(str, "[PHONE]")),
    "redact_keys": each(private.redacting(texts.KEY, "keys"), Argument(str, "[KEY]")),
    "drop_exact_duplicates": StepKind(duplicates.drop_exact_duplicates),
    "drop_near_duplicates": StepKind(similar.drop_near_duplicates, Argument(float, SIMILARITY, least=0.7, most=1)),
    "drop_contradictions": StepKind(
        duplicates.drop_contradictions, Argument(str, "none", choices=("none", "majority"))
    ),
    "drop_held_out_overlap": StepKind(similar.drop_held_out_overlap, Argument(str, "words", choices=similar.HOW)),
    "drop_benchmark_overlap": StepKind(similar.drop_benchmark_overlap, Argument(str, "ngrams", choices=similar.HOW)),
    "cap_labels": StepKind(balance.cap_labels, _COUNT),
    "cap_groups": StepKind(balance.cap_groups, _COUNT),
    "balance_labels": StepKind(balance.balance_labels, Argument(float, 1.0, least=1)),
}
