"""Records as texts, whatever form they have: what is asked, what is answered, and the template that all prompts share.

Used by what compares records with one another: checks, cleaning, the hashes of record_keys.py.
"""

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from sft_jax.data.conversations import (
    Chat,
    Conversation,
    Example,
    Labelled,
    Message,
    Preference,
    Segments,
    TokenExample,
)
from sft_jax.data.records import Record
from sft_jax.sources.transformers_types import PreTrainedTokenizerBase

_TEMPLATE_QUESTIONS = 10  # fewer questions are not searched for a template
TEMPLATE_SAMPLE = 2_000  # records that a template is read off: few enough to wait for before the first is hashed

Texts = tuple[str, str, str, tuple[str, ...]]  # system, asked, question, answers


class View(NamedTuple):
    """A record as texts.

    Attributes:
        id: that of the record.
        system: what system and developer turns say.
        asked: everything else before the last answer; empty where every text is an answer.
        question: of that, what the user said last.
        answers: what is to be learnt: all turns of the assistant, all trained segments.
        group: the slice of the data.
        tools: definitions of the tools that may be called, as JSON; empty for none.
        rejected: of a pair, the answer that is not preferred; of an answer that is not wanted, itself.
    """

    id: str
    system: str
    asked: str
    question: str
    answers: tuple[str, ...]
    group: str
    tools: str = ""
    rejected: str = ""

    @property
    def answer(self) -> str:
        """The last answer; empty where there is none."""
        return self.answers[-1] if self.answers else ""

    @property
    def text(self) -> str:
        """All of it up to the last answer."""
        return "\n".join(part for part in (self.system, self.asked, self.answer) if part)


class PromptTemplate(NamedTuple):
    """The text that questions of a data set begin with, and end with; both empty where there is none."""

    begin: str = ""
    end: str = ""

    @classmethod
    def of_views(cls, views: Sequence[View]) -> "PromptTemplate":
        """What the questions of the first 2,000 records share; nothing where there are hardly any.

        Not of all records, so that it is known before the last of them is read. Where later questions lack it,
        they stay as they are (see `own`).
        """
        questions = [view.question for view in views[:TEMPLATE_SAMPLE] if view.question]
        return cls.of(questions) if len(questions) >= _TEMPLATE_QUESTIONS else cls()

    @classmethod
    def of(cls, questions: Sequence[str]) -> "PromptTemplate":
        """The template of these questions, cut at white space so that no word is split."""
        begin = re.sub(r"\s*\S*\Z", "", shared_beginning(questions))
        end = re.sub(r"\A\S*\s*", "", shared_beginning([question[len(begin) :][::-1] for question in questions])[::-1])
        return cls(begin, end)

    def own(self, text: str) -> str:
        """The text between the two, without white space around it; the whole text where it lacks one of them."""
        whole = text.strip()
        if len(whole) <= len(self.begin) + len(self.end) or not (
            whole.startswith(self.begin) and whole.endswith(self.end)
        ):
            return whole
        return whole[len(self.begin) : len(whole) - len(self.end)].strip() or whole

    def prompt(self, view: View) -> tuple[str, str, str]:
        """What makes prompts the same: system turns, tools, and what is asked without the template."""
        return view.system.strip(), view.tools, self.own(view.asked)

    def main(self, view: View) -> str:
        """The text by which a record is compared with measured ones: what is asked, or all of a plain text."""
        return self.own(view.asked) or view.answer.strip()

    def text(self, view: View) -> str:
        """What is asked and the last answer, without the template."""
        return f"{self.own(view.asked)}\n{view.answer}" if view.asked else view.answer

    def asked_texts(self, view: View) -> set[str]:
        """The texts by which a record is found: all that is asked, or what the user said last."""
        return {self.main(view), self.own(view.question)} - {""}


NO_TEMPLATE = PromptTemplate()


def shared_beginning(texts: Sequence[str]) -> str:
    """The longest text that all of them begin with."""
    first, last = min(texts), max(texts)
    return first[: next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))]


def view_of(record: Record, tokenizer: PreTrainedTokenizerBase | None = None) -> View:
    """A record as texts, without passages of a corpus; the tokenizer is needed for records that are tokens already."""
    example = record.said
    system, asked, question, answers = _texts(example, tokenizer)
    tools = json.dumps(example.tools) if isinstance(example, Chat | Preference) and example.tools else ""
    return View(record.id, system, asked, question, answers, record.group, tools, _rejected(example, answers))


def _rejected(example: Example, answers: tuple[str, ...]) -> str:
    if isinstance(example, Preference):
        return "\n".join(map(_said, example.rejected))
    return answers[-1] if isinstance(example, Labelled) and not example.desirable else ""


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
        case TokenExample(tokens, weights):
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
        raise ValueError("A row of tokens can be read with the tokenizer only: give one to `view_of`.")
    trained = [i for i, weight in enumerate(weights) if weight]
    first = trained[0] if trained else len(tokens)
    before = tokenizer.decode([int(token) for token in tokens[:first]])
    answer = tokenizer.decode([int(tokens[i]) for i in trained])
    return "", before, before, (answer,) if trained else ()
