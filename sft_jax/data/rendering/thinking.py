"""Thinking: the words a chat template puts around what an assistant thinks, and where it thinks nothing.

Serves turns.py. The words are read off the template itself: what it writes around a thought it is given is what it
writes around none.
"""

import re
from typing import NamedTuple

from sft_jax.data.conversations import Message
from sft_jax.data.rendering.rendered import RowError, Span
from sft_jax.data.rendering.templates import ChatTemplate


class ThinkingWords(NamedTuple):
    """What stands before and behind a thought, without white space."""

    start: str
    end: str


# Of templates that show no thoughts. Contents may hold some, spelt as most models spell them.
USUAL = ThinkingWords("<think>", "</think>")


def thinking_words(template: ChatTemplate) -> ThinkingWords:
    """The words of a template; `USUAL` where it shows no thoughts."""
    question = Message("user", "a question")
    answer = Message("assistant", "the answer", reasoning="some thought")
    try:
        prompt, text = template.render([question], generation_prompt=True), template.render([question, answer])
    except RowError:
        return USUAL
    start, thought, behind = text.removeprefix(prompt).partition(answer.reasoning)
    end, found, _ = behind.partition(answer.content)
    if not (text.startswith(prompt) and thought and found and end.strip()):
        return USUAL
    # A generation prompt may open the thought already: then it ends with the word.
    return ThinkingWords(start.strip() or prompt.split()[-1], end.strip())


def empty_thinking(text: str, turn: Span, words: ThinkingWords) -> Span | None:
    """Where a turn begins with a thought of white space alone, with its words and the white space behind them.

    Args:
        text: of the row.
        turn: characters [start, end) that the model writes.
        words: of the template.

    Returns:
        None where the turn does not begin so.
    """
    opened = text[: turn[0]].rstrip().endswith(words.start)
    start = "" if opened else rf"\s*{re.escape(words.start)}"
    found = re.compile(rf"{start}\s*{re.escape(words.end)}\s*").match(text, *turn)
    return None if found is None else found.span()
