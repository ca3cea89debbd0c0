"""The input of the checks: the records of a run with their tokens, and what they must not overlap with.

Checks read a record as texts, whatever its form (data/views.py). Those that look for equal texts compare hashes
(data/tokenized/record_keys.py), and so look at all records even where only the first ones are in memory as texts.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from sft_jax.data.records import Record
from sft_jax.data.rendering.special_tokens import content_text
from sft_jax.data.tokenized import DroppedRow, Tokenized, TokenizedExamples
from sft_jax.data.tokenized.record_keys import RecordKeys
from sft_jax.data.views import PromptTemplate, View, view_of
from sft_jax.sources.transformers_types import PreTrainedTokenizerBase

Made = TypeVar("Made")

_SHOWN_QUESTION = 100  # characters of a question in a line


@dataclasses.dataclass(frozen=True)
class CheckedData:
    """All that checks may look at.

    Attributes:
        records: the training data as read, or the first of it.
        examples: of these records, as tokens and weights.
        dropped: rows left out by tokenization.
        tokenizer: of the model.
        sequence_length: tokens in a sequence of the batch.
        stop_ids: tokens that end an answer, from `ConversationRenderer.stop_ids`.
        held_out_records: records kept for measuring.
        benchmarks: prompts of benchmarks that must not be trained on, by name.
        end_of_turn: whose end of turn is trained, `Masking.end_of_turn`.
        too_long: what becomes of examples of more than `sequence_length` tokens, `Masking.too_long`.
        whole: all of the training data, of which `records` are the first; None where they are all.
        trains_answers: whether turns of the assistant are trained, by `Masking.train_on`.
        turn_headers: what the chat template writes before a user's turn and before the answer, from
            `ConversationRenderer.turn_headers`.
        trains_last: whether of the assistant's turns the last alone is trained.
        new_tokens: special tokens that the run adds.
        cleaning: names of the cleaning steps that the records have been through.
    """

    records: Sequence[Record]
    examples: TokenizedExamples
    dropped: Sequence[DroppedRow] = ()
    tokenizer: PreTrainedTokenizerBase | None = None
    sequence_length: int = 1024
    stop_ids: tuple[int, ...] = ()
    held_out_records: Sequence[Record] = ()
    benchmarks: Mapping[str, Sequence[Record]] = dataclasses.field(default_factory=dict)
    end_of_turn: str = "turn"
    too_long: str = "drop"
    whole: Tokenized | None = None
    trains_answers: bool = True
    turn_headers: tuple[str, str] = ("", "")
    trains_last: bool = False
    new_tokens: tuple[str, ...] = ()
    cleaning: tuple[str, ...] = ()
    _made: dict[Callable[["CheckedData"], Any], Any] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def by_step(self, step: str, advice: str, after: str) -> str:
        """Advice that names a cleaning step; `after` for what is found although the step was taken."""
        return after if step in self.cleaning else advice

    def once(self, make: Callable[["CheckedData"], Made]) -> Made:
        """What several checks make of the data, made by the first of them."""
        if make not in self._made:
            self._made[make] = make(self)
        return self._made[make]

    @functools.cached_property
    def views(self) -> list[View]:
        """The training records as texts."""
        return [view_of(record, self.tokenizer) for record in self.records]

    @functools.cached_property
    def held_out_views(self) -> list[View]:
        """The held-out records as texts."""
        return [view_of(record, self.tokenizer) for record in self.held_out_records]

    @functools.cached_property
    def benchmark_views(self) -> dict[str, list[View]]:
        """The prompts of benchmarks as texts."""
        return {
            name: [view_of(record, self.tokenizer) for record in records] for name, records in self.benchmarks.items()
        }

    @functools.cached_property
    def template(self) -> PromptTemplate:
        """What training questions begin and end with."""
        return PromptTemplate.of_views(self.views) if self.whole is None else self.whole.keys.template

    @functools.cached_property
    def keys(self) -> RecordKeys:
        """Hashes of all training records."""
        return RecordKeys.of(self.views, self.template) if self.whole is None else self.whole.keys

    def view(self, number: int) -> View:
        """A training record as texts; one that is not in memory as its tokens decode, chat template included."""
        if number < len(self.views):
            return self.views[number]
        return _view_of_tokens(self.whole, number, self.tokenizer)

    def main(self, view: View) -> str:
        """What makes a record the same as one that is measured: what is asked, of plain text all of it."""
        return self.template.main(view)

    def prompt(self, view: View) -> tuple[str, str, str]:
        """What makes prompts the same: system turns, tools, and what is asked without the prompt template."""
        return self.template.prompt(view)

    def text(self, view: View) -> str:
        """What is asked and the last answer, without the prompt template."""
        return self.template.text(view)

    def line(self, view: View) -> str:
        """A record for people to read: what the user said last and the answer, without the prompt template."""
        asked = self.template.own(view.question)
        if len(asked) > _SHOWN_QUESTION:
            asked = asked[:_SHOWN_QUESTION] + "…"
        return f"{asked} -> {view.answer.strip()}" if asked else view.answer.strip()


def _view_of_tokens(whole: Tokenized, number: int, tokenizer: PreTrainedTokenizerBase) -> View:
    """A record that is not in memory, read off its first example: what the prompt says last, and the answer."""
    example = int(whole.first_examples[number])
    if example < 0:
        dropped = whole.dropped[-1 - example]
        return View(dropped.id, "", "", "", (), "")
    tokens, weights = whole.examples.example(example)
    trained = np.flatnonzero(weights)
    prompt = tokens[: trained[0]] if len(trained) else tokens
    asked = _last_said(prompt, tokenizer)
    answer = content_text(tokenizer, tokens[trained].tolist())
    return View(whole.examples.ids[example], "", asked, asked, (answer,), whole.examples.groups[example])


def _last_said(prompt: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> str:
    """The longer of the last two texts between special tokens: a question, and not the header of the answer to it."""
    cuts = np.flatnonzero(np.isin(prompt, tokenizer.all_special_ids))
    texts = [content_text(tokenizer, piece.tolist()).strip() for piece in np.split(prompt, cuts)]
    return max([text for text in texts if text][-2:], key=len, default="")
