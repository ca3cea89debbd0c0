"""Whole answers against the reference: exact match after a stated normalisation, and regular expressions."""

import collections
import re
import string
import unicodedata
from collections.abc import Callable
from typing import Literal

from sft_jax.evaluation.scorers.bounded_regex import BoundedPattern, ExceededError
from sft_jax.evaluation.scorers.cases import Case, Outcome, Scorer

UnicodeForm = Literal["", "NFC", "NFD", "NFKC", "NFKD"]
# Beside Unicode's categories P*; it has signs such as $ and + too.
_ASCII_PUNCTUATION = set(string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b", re.IGNORECASE)


def normaliser(
    *,
    ignore_case: bool = False,
    ignore_punctuation: bool = False,
    ignore_articles: bool = False,
    unicode_form: UnicodeForm = "",
) -> Callable[[str], str]:
    """A function that brings a text into the form in which it is compared.

    In this order: Unicode form, case (casefold), punctuation (removed), the articles a, an and the (removed), and,
    always, white space (runs are one space, none at the ends). With all three that is the normalisation of SQuAD
    (Rajpurkar et al. 2016), for which punctuation is that of ASCII only.
    """

    def normalised(text: str) -> str:
        if unicode_form:
            text = unicodedata.normalize(unicode_form, text)
        if ignore_case:
            text = text.casefold()
        if ignore_punctuation:
            text = "".join(character for character in text if not _is_punctuation(character))
        if ignore_articles:
            text = _ARTICLES.sub(" ", text)
        return " ".join(text.split())

    return normalised


def exact_match(
    *,
    ignore_case: bool = False,
    ignore_punctuation: bool = False,
    ignore_articles: bool = False,
    unicode_form: UnicodeForm = "",
) -> Scorer:
    """`exact_match`: equal after normalisation, by default of white space alone; see `normaliser`."""
    normalised = normaliser(
        ignore_case=ignore_case,
        ignore_punctuation=ignore_punctuation,
        ignore_articles=ignore_articles,
        unicode_form=unicode_form,
    )
    return lambda prediction, case: {"exact_match": normalised(prediction) == normalised(case.reference)}


def regex(
    *,
    pattern: str,
    group: int | str | None = None,
    take: Literal["first", "last"] = "first",
    compare: bool = True,
    ignore_case: bool = False,
    ignore_punctuation: bool = False,
) -> Scorer:
    """What a regular expression takes out of the answer, compared with the reference.

    `matches`: the pattern is found in the answer. `exact_match`: what it takes (`group`; by default the first group, or
    all of the match where the pattern has none; of the `first` or the `last` match) equals what it takes from the
    reference, or the whole reference where that does not match. Compared as by `normaliser`. Without `compare` there is
    `matches` alone, and the reference is not looked at. `exceeded`: the answer took more steps than
    `bounded_regex.MOST_STEPS`, and counts as one that does not match.

    Raises:
        ValueError: the pattern is no regular expression, cannot be matched in bounded time (`bounded_regex.py`), or
            has no such group; when scoring, a reference that takes too many steps.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"regex: {pattern!r} is no regular expression: {error}") from error
    wanted = min(compiled.groups, 1) if group is None else group
    if wanted not in compiled.groupindex and wanted not in range(compiled.groups + 1):
        raise ValueError(f"regex: {pattern!r} has no group {group!r}; it has {compiled.groups} groups")
    try:
        bounded = BoundedPattern(pattern, compiled.groupindex.get(wanted, wanted))
    except ValueError as error:
        raise ValueError(f"regex: {error}") from error
    normalised = normaliser(ignore_case=ignore_case, ignore_punctuation=ignore_punctuation)

    def taken(text: str) -> str | None:
        matches = bounded.found(text)
        return next(matches, None) if take == "first" else next(iter(collections.deque(matches, 1)), None)

    def score(prediction: str, case: Case) -> Outcome:
        try:
            found, exceeded = taken(prediction), False
        except ExceededError:
            found, exceeded = None, True
        outcome = {"matches": found is not None, "exceeded": exceeded}
        if not compare:
            return outcome
        try:
            expected = taken(case.reference)
        except ExceededError as error:
            raise ValueError(f"regex: in the reference {error}") from error
        expected = case.reference if expected is None else expected
        return {"exact_match": found is not None and normalised(found) == normalised(expected), **outcome}

    return score


def _is_punctuation(character: str) -> bool:
    return character in _ASCII_PUNCTUATION or unicodedata.category(character).startswith("P")
