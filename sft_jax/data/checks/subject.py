"""What is checked: the records of a run with their tokens, and what they must not overlap with.

Checks read texts, whatever form a record has: `View` is a record as the prompt of its last answer and its answers.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from sft_jax.data.conversations import Chat, Conversation, Example, Message, Preference, Segments, TokenRow
from sft_jax.data.records import Record
from sft_jax.data.tokenized import DroppedRow, TokenizedRows


class View(NamedTuple):
    """A record as texts.

    Attributes:
        id: file and line.
        prompt: everything before the last answer, system turns too; empty where every text is an answer.
        question: of the prompt, what the user said last.
        answers: what is to be learnt: all turns of the assistant, all trained segments.
        group: the slice of the data.
    """

    id: str
    prompt: str
    question: str
    answers: tuple[str, ...]
    group: str

    @property
    def answer(self) -> str:
        """The last answer; empty where there is none."""
        return self.answers[-1] if self.answers else ""

    @property
    def text(self) -> str:
        """All of it that is unlike other rows' in some way: the prompt and the last answer."""
        return f"{self.prompt}\n{self.answer}" if self.prompt else self.answer


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
    """

    records: Sequence[Record]
    rows: TokenizedRows
    dropped: Sequence[DroppedRow] = ()
    tokenizer: PreTrainedTokenizerBase | None = None
    row_tokens: int = 1024
    stop_ids: tuple[int, ...] = ()
    held_out_records: Sequence[Record] = ()
    benchmarks: Mapping[str, Sequence[Record]] = dataclasses.field(default_factory=dict)

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


def view_of(record: Record, tokenizer: PreTrainedTokenizerBase | None = None) -> View:
    """A record as texts; the tokenizer is needed for rows that are tokens already."""
    prompt, question, answers = _texts(record.example, tokenizer)
    return View(record.id, prompt, question, answers, record.group)


def _texts(example: Example, tokenizer: PreTrainedTokenizerBase | None) -> tuple[str, str, tuple[str, ...]]:
    match example:
        case Chat(messages):
            return _chat_texts(messages)
        case Preference(prompt, chosen):
            return _chat_texts(prompt + chosen)
        case Segments(parts):
            last = max((i for i, part in enumerate(parts) if part.weight), default=0)
            before = "".join(part.text for part in parts[:last])
            return before, before, tuple(part.text for part in parts if part.weight)
        case TokenRow(tokens, weights):
            return _token_texts(tokens, weights, tokenizer)
    raise TypeError(f"{type(example).__name__} is not a form of example that checks can read.")


def _chat_texts(messages: Conversation) -> tuple[str, str, tuple[str, ...]]:
    last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=len(messages))
    before = messages[:last]
    question = next((message.content for message in reversed(before) if message.role == "user"), "")
    answers = tuple(_said(message) for message in messages if message.role == "assistant")
    return "\n".join(_said(message) for message in before), question, answers


def _said(message: Message) -> str:
    """The content of a turn, its reasoning before it, and the calls it makes behind it."""
    calls = (f"{call.name}({call.arguments})" for call in message.tool_calls)
    return "\n".join(part for part in (message.reasoning, message.content, *calls) if part)


def _token_texts(
    tokens: Sequence[int], weights: Sequence[float], tokenizer: PreTrainedTokenizerBase | None
) -> tuple[str, str, tuple[str, ...]]:
    if tokenizer is None:
        raise ValueError("A row of tokens can be read with the tokenizer only: give one to `Subject`.")
    trained = [i for i, weight in enumerate(weights) if weight]
    first = trained[0] if trained else len(tokens)
    before = tokenizer.decode([int(token) for token in tokens[:first]])
    answer = tokenizer.decode([int(tokens[i]) for i in trained])
    return before, before, (answer,) if trained else ()
