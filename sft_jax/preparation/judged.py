"""What an objective learns from, of the examples that were read: answers to imitate, pairs, or answers judged by
themselves."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sft_jax.data.mismatched import NoOtherPromptError, with_mismatched
from sft_jax.data.reading import flags_of_source
from sft_jax.data.records import DroppedRow
from sft_jax.data.scored import with_scored_ends
from sft_jax.data.tokenized import Counts, Tokenized, TokenizedExamples, group_dropped
from sft_jax.data.tokenizing import nothing_left
from sft_jax.objectives import compares_pairs, judges_answers, judges_one_by_one, scores_texts
from sft_jax.options import Options

_SHOWN = 5  # rows that a note names


def examples_for(options: Options, tokenized: Tokenized, *, held_out: bool = False) -> Tokenized:
    """The examples as the objective of the run has them; those it cannot have are dropped.

    Args:
        options: of the run.
        tokenized: what was read.
        held_out: they are measured and not trained on.

    Raises:
        ValueError: rows that the objective does not learn from; names one and the flags.
    """
    name, examples = options.objective.name, tokenized.examples
    check_objective_reads(options, examples)
    if scores_texts(name):
        return dataclasses.replace(tokenized, examples=with_scored_ends(examples))
    if not judges_one_by_one(name):
        return tokenized
    if not held_out:
        _check_both_labels(name, examples)
    try:
        made, left_out = with_mismatched(examples, options.data.sequence_length)
    except NoOtherPromptError as error:
        where = "held_out" if held_out else "train"
        raise ValueError(
            f"{error} (--config.objective.name={name}); give --config.data.{where} rows of several prompts"
        ) from None
    dropped = [row for _, row in left_out]
    if dropped and options.data.masking.too_long == "error":
        raise ValueError(f"{dropped[0].id}: {dropped[0].reason}: {dropped[0].detail}")
    if not len(made):
        raise nothing_left(len(examples), dropped)
    counts, lost = tokenized.counts, len(dropped)
    counts = Counts(counts.records, counts.kept - lost, counts.dropped + lost, counts.examples - lost)
    return dataclasses.replace(tokenized, examples=made, dropped=[*tokenized.dropped, *dropped], counts=counts)


def left_out_note(dropped: Sequence[DroppedRow]) -> str:
    """Lines about held-out rows that an objective cannot have."""
    return "".join(
        f"\n  {len(rows)} more dropped, {reason}: {', '.join(row.id for row in rows[:_SHOWN])}"
        + (", …" if len(rows) > _SHOWN else "")
        for reason, rows in group_dropped(dropped).items()
    )


def check_objective_reads(options: Options, examples: TokenizedExamples) -> None:
    """Checks that the rows are what the objective learns from.

    Raises:
        ValueError: one is a pair of answers, or an answer with a label, and the objective wants another kind; names it
            and the flags.
    """
    name, one, other = options.objective.name, examples.has_branch(1), examples.has_branch(2)
    kinds = np.select([one & other, one | other], ["a pair of answers", "an answer with a label"], "")
    allowed = ("a pair of answers", "an answer with a label") if judges_one_by_one(name) else ("a pair of answers",)
    wrong = ~np.isin(kinds, allowed if judges_answers(name) else ("",))
    if not wrong.any():
        return
    row = int(wrong.argmax())
    where, flags = examples.ids[row], flags_of_source(examples.sources[row])
    if not judges_answers(name):
        raise ValueError(f"{where}: {_not_to_imitate(str(kinds[row]), name, flags)}")
    advice = "--config=configs/sft.py imitates answers"
    if compares_pairs(name):
        if kinds[row]:
            advice = "--config=configs/preference.py:kto learns from answers with labels"
        raise ValueError(
            f"{where}: --config.objective.name={name} compares two answers to a prompt, and this row is no such pair. "
            f'Expected {{"prompt", "chosen", "rejected"}} (docs/data.md), read by {flags}preference=pairs; {advice}'
        )
    raise ValueError(
        f"{where}: --config.objective.name={name} learns from answers that are wanted or not, and nobody says it of "
        f'this row. Expected {{"prompt", "completion", "label"}}, or pairs, {{"prompt", "chosen", "rejected"}} '
        f"(docs/data.md), read by {flags}preference=pairs; {advice}"
    )


def _not_to_imitate(kind: str, name: str, flags: str) -> str:
    """Why a row that was judged is not imitated, and what to do."""
    if kind == "a pair of answers":
        return (
            f"a pair of answers is not an example to imitate, and --config.objective.name={name} imitates. "
            f"{flags}preference=chosen takes the chosen answers; --config=configs/preference.py compares the two"
        )
    return (
        f"an answer with a label is not an example to imitate, and --config.objective.name={name} imitates. Where all "
        f"are to be imitated, {flags}ignore=\"('label',)\" takes the label for a column that nobody reads; "
        "--config=configs/preference.py:kto learns from labels"
    )


def _check_both_labels(name: str, examples: TokenizedExamples) -> None:
    """Checks that some answers are wanted and some are not.

    Raises:
        ValueError: all are one of the two.
    """
    has = [examples.has_branch(side).any() for side in (1, 2)]
    if all(has):
        return
    label, lacking = ("true", "false") if has[0] else ("false", "true")
    raise ValueError(
        f"{examples.ids[0]} and all other rows have the label {label}: --config.objective.name={name} learns from "
        f"answers that are wanted and from answers that are not; add rows with the label {lacking}"
    )
