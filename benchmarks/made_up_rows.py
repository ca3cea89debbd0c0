"""Rows of made-up words whose lengths in tokens are given: pairs of answers, conversations, and prompts to answer.

A word is one token of the model's tokenizer with the space before it, so that a text has as many tokens as words.
Lengths are the same for all rows, or follow a lognormal law around the mean that is asked for.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

FIRST = "The"  # a token without a space before it


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Tokens of the rows, on average.

    Attributes:
        prompt: of a prompt, with all that the chat template writes around it.
        answer: of an answer, with its end.
        spread: standard deviation of the logarithm of each; 0: all are alike.
    """

    prompt: int
    answer: int
    spread: float = 0.0

    def drawn(self, mean: int, rng: np.random.Generator) -> int:
        """A length of that mean."""
        return round(mean * rng.lognormal(-(self.spread**2) / 2, self.spread)) if self.spread else mean


def write_pairs(path: Path, tokenizer, count: int, lengths: Lengths, seed: int = 0) -> Path:
    """Rows of a prompt with an answer that is preferred and one that is not, each drawn by itself.

    Raises:
        ValueError: a prompt would have no room beside what the chat template writes.
    """
    write = _Writer(tokenizer, lengths, seed)
    return _write(path, [write.prompt() | {"chosen": write.answer(), "rejected": write.answer()} for _ in range(count)])


def write_conversations(path: Path, tokenizer, count: int, lengths: Lengths, seed: int = 0) -> Path:
    """Rows of a prompt and one answer.

    Raises:
        ValueError: a prompt would have no room beside what the chat template writes.
    """
    write = _Writer(tokenizer, lengths, seed)
    return _write(path, [write.prompt() | {"completion": write.answer()} for _ in range(count)])


class _Writer:
    """Draws texts."""

    def __init__(self, tokenizer, lengths: Lengths, seed: int):
        self._rng, self._lengths, self._words = np.random.default_rng(seed), lengths, _words(tokenizer)
        asked = [{"role": "user", "content": FIRST}]
        around = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"]
        self._around = len(around) - 1

    def prompt(self) -> dict[str, str]:
        tokens = self._lengths.drawn(self._lengths.prompt, self._rng)
        if tokens <= self._around:
            raise ValueError(
                f"a prompt of {tokens} tokens was drawn, and what the chat template writes has {self._around} already: "
                "give longer prompts, or a smaller spread"
            )
        return {"prompt": self._text(tokens - self._around)}

    def answer(self) -> str:
        return self._text(max(1, self._lengths.drawn(self._lengths.answer, self._rng) - 1))

    def _text(self, words: int) -> str:
        return " ".join([FIRST, *self._rng.choice(self._words, words - 1)])


def _words(tokenizer) -> Sequence[str]:
    """Short words of small letters, each a token behind a space."""
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return [piece[1:] for piece, _ in pieces if re.fullmatch("Ġ[a-z]{3,7}", piece)][:5000]


def _write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
