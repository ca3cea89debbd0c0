"""What is checked: the records of a run with their tokens, and what they must not overlap with.

Checks read texts, whatever form a record has: `View` is a record as the prompt of its last answer and its answers.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from sft_jax.data.conversations import Chat, Conversation, Example, Message, Preference, Segments, TokenRow
from sft_jax.data.records import Record
from sft_jax.data.tokenized import DroppedRow, TokenizedRows

_TEMPLATE_ROWS = 10  # fewer rows have no template to speak of
_SHOWN_QUESTION = 100  # characters of a question in a line


Texts = tuple[str, str, str, tuple[str, ...]]  # system, asked, question, answers


class View(NamedTuple):
    """A record as texts.

    Attributes:
        id: file and line.
        system: what system and developer turns say.
        asked: everything else before the last answer; empty where every text is an answer.
        question: of that, what the user said last.
        answers: what is to be learnt: all turns of the assistant, all trained segments.
        group: the slice of the data.
    """

    id: str
    system: str
    asked: str
    question: str
    answers: tuple[str, ...]
    group: str

    @property
    def answer(self) -> str:
        """The last answer; empty where there is none."""
        return self.answers[-1] if self.answers else ""

    @property
    def text(self) -> str:
        """All of it up to the last answer."""
        return "\n".join(part for part in (self.system, self.asked, self.answer) if part)


@dataclasses.dataclass(frozen=True)
class Subject:
    """All that checks may look at.

    Attributes:
        records: the training data as read.
        rows: what of it is trained on, as tokens.
        dropped: rows left out by tokenization.
        tokenizer: of the model.
        row_tokens: tokens in a row of the batch.
        stop_ids: tokens that end an answer, from `ConversationRenderer.stop_ids`.
        held_out_records: rows kept for measuring.
        benchmarks: prompts of benchmarks that must not be trained on, by name.
        end_of_turn: whose end of turn is trained, `Masking.end_of_turn`.
        cuts_rows: whether rows that are too long were cut at their end; then full ones may end in an answer.
    """

    records: Sequence[Record]
    rows: TokenizedRows
    dropped: Sequence[DroppedRow] = ()
    tokenizer: PreTrainedTokenizerBase | None = None
    row_tokens: int = 1024
    stop_ids: tuple[int, ...] = ()
    held_out_records: Sequence[Record] = ()
    benchmarks: Mapping[str, Sequence[Record]] = dataclasses.field(default_factory=dict)
    end_of_turn: str = "turn"
    cuts_rows: bool = False

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
    def template(self) -> "PromptTemplate":
        """What all training questions begin and end with."""
        questions = [view.question for view in self.views if view.question]
        return PromptTemplate.of(questions) if len(questions) >= _TEMPLATE_ROWS else PromptTemplate()

    def main(self, view: View) -> str:
        """What makes a row the same as another when it is measured: what is asked, of plain text all of it."""
        return self.template.own(view.asked) or view.answer.strip()

    def prompt(self, view: View) -> tuple[str, str]:
        """What makes prompts the same: system turns, and what is asked without the prompt template."""
        return view.system.strip(), self.template.own(view.asked)

    def text(self, view: View) -> str:
        """What is asked and the last answer, without the prompt template."""
        return f"{self.template.own(view.asked)}\n{view.answer}" if view.asked else view.answer

    def line(self, view: View) -> str:
        """A row for a person: what the user said last and the answer, without the prompt template."""
        asked = self.template.own(view.question)
        if len(asked) > _SHOWN_QUESTION:
            asked = asked[:_SHOWN_QUESTION] + "…"
        return f"{asked} -> {view.answer.strip()}" if asked else view.answer.strip()


class PromptTemplate(NamedTuple):
    """The text that every question of a data set begins with, and ends with; both empty where there is none."""

    begin: str = ""
    end: str = ""

    @classmethod
    def of(cls, questions: Sequence[str]) -> "PromptTemplate":
        """The template of these questions, cut at white space so that no word is split."""
        begin = re.sub(r"\s*\S*\Z", "", shared_beginning(questions))
        end = re.sub(r"\A\S*\s*", "", shared_beginning([question[len(begin) :][::-1] for question in questions])[::-1])
        return cls(begin, end)

    def own(self, text: str) -> str:
        """What stands between the two, without white space around it; the whole text where that is not there."""
        whole = text.strip()
        if len(whole) <= len(self.begin) + len(self.end) or not (
            whole.startswith(self.begin) and whole.endswith(self.end)
        ):
            return whole
        return whole[len(self.begin) : len(whole) - len(self.end)].strip() or whole


def shared_beginning(texts: Sequence[str]) -> str:
    """The longest text that all of them begin with."""
    first, last = min(texts), max(texts)
    return first[: next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))]


def view_of(record: Record, tokenizer: PreTrainedTokenizerBase | None = None) -> View:
    """A record as texts; the tokenizer is needed for rows that are tokens already."""
    system, asked, question, answers = _texts(record.example, tokenizer)
    return View(record.id, system, asked, question, answers, record.group)


def _texts(example: Example, tokenizer: PreTrainedTokenizerBase | None) -> Texts:
    match example:
        case Chat(messages):
            return _chat_texts(messages)
        case Preference(prompt, chosen):
            return _chat_texts(prompt + chosen)
        case Segments(parts):
            last = max((i for i, part in enumerate(parts) if part.weight), default=0)
            before = "".join(part.text for part in parts[:last])
            return "", before, before, tuple(part.text for part in parts if part.weight)
        case TokenRow(tokens, weights):
            return _token_texts(tokens, weights, tokenizer)
    raise TypeError(f"{type(example).__name__} is not a form of example that checks can read.")


def _chat_texts(messages: Conversation) -> Texts:
    last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=len(messages))
    before = messages[:last]
    question = next((message.content for message in reversed(before) if message.role == "user"), "")
    answers = tuple(_said(message) for message in messages if message.role == "assistant")
    system, asked = (
        "\n".join(_said(message) for message in before if (message.role in ("system", "developer")) == is_system)
        for is_system in (True, False)
    )
    return system, asked, question, answers


def _said(message: Message) -> str:
    """The content of a turn, its reasoning before it, and the calls it makes behind it."""
    calls = (f"{call.name}({call.arguments})" for call in message.tool_calls)
    return "\n".join(part for part in (message.reasoning, message.content, *calls) if part)


def _token_texts(tokens: Sequence[int], weights: Sequence[float], tokenizer: PreTrainedTokenizerBase | None) -> Texts:
    if tokenizer is None:
        raise ValueError("A row of tokens can be read with the tokenizer only: give one to `Subject`.")
    trained = [i for i, weight in enumerate(weights) if weight]
    first = trained[0] if trained else len(tokens)
    before = tokenizer.decode([int(token) for token in tokens[:first]])
    answer = tokenizer.decode([int(tokens[i]) for i in trained])
    return "", before, before, (answer,) if trained else ()
