"""Empty thoughts: answers that begin with a thought of nothing but white space, which can be left untrained.

Used by example_texts.py. The words around thoughts are those of the template, see answers.py.
"""

import dataclasses
import re
from typing import NamedTuple

from sft_jax.data.rendering.answers import AnswerFormat
from sft_jax.data.rendering.rendered import Span
from sft_jax.data.rendering.turns import Context, Turn


class ThinkingWords(NamedTuple):
    """What stands before a thought (nothing, where prompts end with it) and behind it, without white space."""

    start: str
    end: str


# Of templates that show no thoughts. Contents may hold some, spelt as most models spell them.
USUAL = ThinkingWords("<think>", "</think>")


def thinking_words(answers: AnswerFormat) -> ThinkingWords:
    """The words of a template; `USUAL` where it shows no thoughts."""
    if answers.thinking is None:
        return USUAL
    start, ends = answers.thinking
    return ThinkingWords(start, ends[0])


def without_empty_thinking(context: Context, words: ThinkingWords) -> Context:
    """The context with answers trained only from behind an empty thought."""
    turns = list(context.turns)
    for number in context.trained:
        if context.messages[number].role == "assistant" and turns[number].spans:
            turns[number] = _without(context.rendered.text, turns[number], words)
    return dataclasses.replace(context, turns=tuple(turns))


def _without(text: str, turn: Turn, words: ThinkingWords) -> Turn:
    first, *others = turn.spans
    empty = empty_thinking(text, first, words)
    return turn if empty is None else dataclasses.replace(turn, spans=((empty[1], first[1]), *others))


def empty_thinking(text: str, turn: Span, words: ThinkingWords) -> Span | None:
    """Where a turn begins with a thought of white space alone, with its words and the white space behind them.

    Args:
        text: of the example.
        turn: characters [start, end) that the model writes.
        words: of the template.

    Returns:
        None where the turn does not begin so.
    """
    opened = text[: turn[0]].rstrip().endswith(words.start)
    start = "" if opened else rf"\s*{re.escape(words.start)}"
    found = re.compile(rf"{start}\s*{re.escape(words.end)}\s*").match(text, *turn)
    return None if found is None else found.span()
