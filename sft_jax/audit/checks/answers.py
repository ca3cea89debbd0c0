"""Answers that teach little: empty ones, single words, the same words over and over."""

import collections
from collections.abc import Sequence

from sft_jax.audit.checked_data import CheckedData
from sft_jax.audit.checks.json_answers import json_expected
from sft_jax.audit.findings import Observation, counted, excerpt, observed, places
from sft_jax.data.labels import labels_of
from sft_jax.data.similarity.shingles import words
from sft_jax.data.views import View, shared_beginning

_HEAD_WORDS = 4  # answers that share so many words at an end are looked at for more
_LEAST_ROWS = 5
_LEAST_SHARE = 0.02
_LONG_WORDS = 8  # shorter answers may well be equal


def empty_answers(data: CheckedData) -> list[Observation]:
    """Rows with an answer that says nothing."""
    empty = [view for view in data.views if not all(answer.strip() for answer in view.answers)]
    why = "they teach the model to end its turn at once."
    advice = data.by_step(
        "drop_empty_answers", f"Fill them or drop them (drop_empty_answers): {why}", f"Fill them or remove them: {why}"
    )
    return _rows(data, empty, "an empty answer", advice)


def one_word_answers(data: CheckedData) -> list[Observation]:
    """Rows whose answer is one word, where answers are neither labels nor JSON (`["greet"]`)."""
    views = data.views
    if labels_of(views) is not None or json_expected(views):
        return []
    short = [view for view in views if view.answers and len(words(view.answer)) == 1]
    advice = "If the task is not that short, they pull all answers towards it."
    return _rows(data, short, "an answer of one word", advice)


def repeated_answers(data: CheckedData) -> list[Observation]:
    """Rows whose long answer is word for word that of another prompt."""
    prompts = collections.defaultdict(dict)
    for view in data.views:
        if len(words(view.answer)) >= _LONG_WORDS:
            prompts[view.answer.strip()].setdefault(data.prompt(view), view)
    groups = [list(found.values()) for found in prompts.values() if len(found) > 1]
    repeating = [view for group in groups for view in group[1:]]
    advice = "The model learns it as a phrase: give each prompt an answer of its own, or keep one of the rows."
    return _rows(data, repeating, f"an answer of {_LONG_WORDS} words or more that another prompt has too", advice)


def boilerplate(data: CheckedData) -> list[Observation]:
    """Words at the beginning or the end that many answers share."""
    if labels_of(data.views) is not None or json_expected(data.views):
        return []
    views = [view for view in data.views if len(words(view.answer)) >= _LONG_WORDS]
    return [*_shared(data, views, "begin", 1), *_shared(data, views, "end", -1)]


def _shared(data: CheckedData, views: Sequence[View], verb: str, step: int) -> list[Observation]:
    """`step` -1 reads answers backwards."""
    groups = collections.defaultdict(list)
    for view in views:
        groups[tuple(view.answer.split()[::step][:_HEAD_WORDS])].append(view)
    least = max(_LEAST_ROWS, _LEAST_SHARE * len(data.views))
    large = sorted((group for group in groups.values() if len(group) >= least), key=len, reverse=True)
    if not large:
        return []
    phrases = [shared_beginning([view.answer.strip()[::step] for view in group])[::step] for group in large]
    count = sum(map(len, large))
    examples = places((group[0].id, f"{len(group):,} x {phrase}") for group, phrase in zip(large, phrases, strict=True))
    return [
        Observation(
            f"{count:,} answers {verb} with words that at least {min(map(len, large)):,} share",
            count,
            count / len(data.views),
            examples,
            "If it is no format you want, cut it: what all answers share is learnt first and most.",
            {"phrases": {excerpt(phrase): len(group) for phrase, group in zip(phrases[:20], large, strict=False)}},
        )
    ]


def _rows(data: CheckedData, views: Sequence[View], what: str, advice: str) -> list[Observation]:
    title = f"{counted(len(views), 'row has', 'rows have')} {what}"
    return observed(title, views, len(data.views), lambda view: (view.id, data.line(view)), advice)
