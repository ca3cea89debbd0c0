"""How an answer is written rather than what it says: style, length, repetition."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Literal

from sft_jax.evaluation.scorers.cases import Case, Outcome, Scorer

Unit = Literal["characters", "words"]
Measure = Literal["characters", "words", "tokens"]


def style(*, order: int = 3) -> Scorer:
    """`style_similarity`: cosine of the counts of character n-grams of answer and reference, 0 to 1, averaged.

    Runs of white space count as one space, and case counts. It is 0 for an answer without a text.

    Raises:
        ValueError: order below 1; when scoring, a reference without text.
    """
    if order < 1:
        raise ValueError(f"style: order must be at least 1, got {order}")

    def score(prediction: str, case: Case) -> Outcome:
        answer, reference = (_character_ngrams(text, order) for text in (prediction, case.reference))
        if not reference:
            raise ValueError(f"style: the reference has no text: {case.reference[:80]!r}")
        product = sum(count * reference[gram] for gram, count in answer.items())
        lengths = [math.sqrt(sum(count**2 for count in counts.values())) for counts in (answer, reference)]
        return {"style_similarity": min(1.0, product / (lengths[0] * lengths[1])) if answer else 0.0}

    return score


def length(*, least: int = 0, most: int, unit: Measure = "characters", tokenizer: str = "") -> Scorer:
    """`within_length`: the answer has at least `least` and at most `most` characters, words or tokens.

    White space counts as it is written, and words are what it parts. Tokens are those of `tokenizer`, a checkpoint or a
    run, without special ones. The reference is not looked at.

    Raises:
        ValueError: a range that is none, tokens without a tokenizer or the reverse, or a tokenizer that is not there.
    """
    if not 0 <= least <= most:
        raise ValueError(f"length: expected 0 <= least <= most, got least={least} and most={most}")
    if (unit == "tokens") != bool(tokenizer):
        raise ValueError(f"length: unit={unit!r} and tokenizer={tokenizer!r}: tokens, and they alone, need a tokenizer")
    if unit == "tokens":
        from sft_jax.runs.base import load_base_tokenizer  # slow to import

        encode = load_base_tokenizer(tokenizer).encode
        count = lambda text: len(encode(text, add_special_tokens=False))
    else:
        count = lambda text: len(text if unit == "characters" else text.split())
    return lambda prediction, case: {"within_length": least <= count(prediction) <= most}


def length_ratio(*, unit: Unit = "characters") -> Scorer:
    """`length_ratio`: length of all answers over length of all references; neither higher nor lower is better.

    When scoring, raises ValueError where a reference has no length.
    """

    def score(prediction: str, case: Case) -> Outcome:
        answer, reference = (len(_units(text, unit)) for text in (prediction, case.reference))
        if not reference:
            raise ValueError(f"length_ratio: the reference is empty: {case.reference[:80]!r}")
        return {"answer_length": answer, "reference_length": reference}

    return score


def repetition(*, order: int = 3, unit: Unit = "words") -> Scorer:
    """`repetition`: share of an answer's n-grams that were there before in it, averaged; `distinct`: the rest.

    `distinct` is distinct-n (Li et al. 2016) of each answer by itself. An answer of fewer than `order` words has no
    value.
    """
    if order < 1:
        raise ValueError(f"repetition: order must be at least 1, got {order}")

    def score(prediction: str, case: Case) -> Outcome:
        grams = _ngrams(_units(prediction, unit), order)
        if not grams:
            return {"repetition": None, "distinct": None}
        distinct = len(set(grams)) / len(grams)
        return {"repetition": 1.0 - distinct, "distinct": distinct}

    return score


def _units(text: str, unit: Unit) -> Sequence[str]:
    return text.split() if unit == "words" else " ".join(text.split())


def _ngrams(items: Sequence[str], order: int) -> list[Hashable]:
    return [tuple(items[start : start + order]) for start in range(len(items) - order + 1)]


def _character_ngrams(text: str, order: int) -> Counter[str]:
    """Of the text with a space before and after it, so that one of a single letter has some too."""
    plain = " ".join(text.split())
    padded = f"{' ' * (order - 1)}{plain}{' ' * (order - 1)}" if plain else ""
    return Counter(padded[start : start + order] for start in range(len(padded) - order + 1))
