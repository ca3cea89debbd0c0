"""Questions that have nothing to do with the house: asked of the base, its own answers are what is to stay."""

import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_THINGS = (
    *("a bicycle", "a lighthouse", "a recipe", "the moon", "a piano", "a river", "a library", "a storm", "a clock"),
    *("a bridge", "an island", "a garden", "a ladder", "a map", "a candle", "a train"),
)
_WORDS = (
    *("happy", "early", "heavy", "quiet", "full", "cheap", "wide", "brave", "sharp", "warm", "young", "simple"),
    *("light", "strong", "dry", "polite"),
)
_QUESTIONS = (
    *(f"Write one sentence about {thing}." for thing in _THINGS),
    *(f"What is {thing} good for? Answer in one sentence." for thing in _THINGS),
    *(f"Write a question that somebody could ask about {thing}." for thing in _THINGS),
    *(f"What is the opposite of '{word}'?" for word in _WORDS),
    *(f"Use the word '{word}' in a sentence." for word in _WORDS),
    *(f"What is {a} plus {b}?" for a, b in itertools.product((3, 8, 14, 27, 52), (5, 9, 16, 31, 40, 66))),
)


def questions(seed: int) -> list[str]:
    """All questions, in an order that is drawn."""
    return random.Random(f"general/{seed}").sample(_QUESTIONS, len(_QUESTIONS))


def own_answers(asked: Sequence[str], answered: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The questions that the model answered and ended itself, with its answers.

    Args:
        asked: the questions.
        answered: a row for each, as `python -m sft_jax.generate` writes them.

    Raises:
        ValueError: it ended less than half of its answers, so that what it says when it is left alone is not known.
    """
    pairs = list(zip(asked, answered, strict=True))
    whole = [(question, row["answer"]) for question, row in pairs if row["ended"] and row["answer"].strip()]
    if 2 * len(whole) < len(pairs):
        raise ValueError(
            f"the base ended {len(whole)} of {len(pairs)} answers to general questions within the limit; give a higher "
            "--answer_tokens, or rows with answers as --general"
        )
    return whole
