"""Whole answers against the reference: exact match after a stated normalisation, and regular expressions."""

import re
import string
import unicodedata
from collections.abc import Callable
from typing import Literal

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
    `matches` alone.

    Raises:
        ValueError: the pattern is no regular expression, or has no such group.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"regex: {pattern!r} is no regular expression: {error}") from error
    number = min(compiled.groups, 1) if group is None else group
    if number not in compiled.groupindex and number not in range(compiled.groups + 1):
        raise ValueError(f"regex: {pattern!r} has no group {group!r}; it has {compiled.groups} groups")
    normalised = normaliser(ignore_case=ignore_case, ignore_punctuation=ignore_punctuation)

    def taken(text: str) -> str | None:
        matches = list(compiled.finditer(text))
        if not matches:
            return None
        return matches[0 if take == "first" else -1].group(number) or ""

    def score(prediction: str, case: Case) -> Outcome:
        found = taken(prediction)
        if not compare:
            return {"matches": found is not None}
        expected = taken(case.reference)
        expected = case.reference if expected is None else expected
        is_equal = found is not None and normalised(found) == normalised(expected)
        return {"exact_match": is_equal, "matches": found is not None}

    return score


def _is_punctuation(character: str) -> bool:
    return character in _ASCII_PUNCTUATION or unicodedata.category(character).startswith("P")
