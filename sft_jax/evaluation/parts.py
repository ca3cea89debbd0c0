"""Scores the parts of an answer one by one: thinking, content and calls.

`sft_jax.data.rendering.answers` takes the text of an answer apart by the rules of the chat template. The scorers get
the contents alone; thinking and calls are compared here. A column that has no value for an example is None there.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer, ExampleError
from sft_jax.data.rendering.answers import Answer, same_calls
from sft_jax.evaluation.scorers import Case, Outcome, Scorer
from sft_jax.evaluation.scorers.cases import is_right
from sft_jax.evaluation.scoring import metrics_of, score_examples


@dataclasses.dataclass(frozen=True)
class Reference:
    """The answer that is right.

    Attributes:
        text: as the chat template writes it, thinking and calls included, without its end.
        parts: of it.
        reads_calls: False where its calls cannot be read back from the text, and are compared as text.
    """

    text: str
    parts: Answer
    reads_calls: bool


def reference_of(renderer: ConversationRenderer, record: Record) -> Reference:
    """The last answer of a record as the template of the model writes it.

    Raises:
        ValueError: the template refuses the record; names it.
    """
    tools, message = record.example.tools, record.conversation[-1]
    try:
        text = renderer.answer_text(record.conversation, tools)
    except ExampleError as error:
        raise ValueError(f"{record.id}: {error}") from error
    parts = renderer.read_answer(text, tools, bool(message.tool_calls))
    if message.tool_calls and not same_calls(parts.calls, message.tool_calls):
        return Reference(text, renderer.read_answer(text, tools, read_calls=False), False)
    return Reference(text, parts, True)


class PartScorer:
    """Scores answers to records: the scorer's outcome, of the content, and columns for the other parts where some are.

    `exact_match`: content and calls are right; thinking too, if `match_thinking`. `content_match`, `calls_match`,
    `thinking_match`: for records whose reference has such a part. They are there if any reference thinks or calls.
    """

    def __init__(
        self, scorer: Scorer, records: Sequence[Record], renderer: ConversationRenderer, match_thinking: bool = False
    ):
        """Reads the references, and scores each and silence, so that what cannot be scored is known early.

        Args:
            scorer: of contents.
            records: conversations that end with the reference answer.
            renderer: whose template tells the parts of an answer apart.
            match_thinking: an exact match wants the thinking to be that of the reference too.

        Raises:
            ValueError: the template or the scorer refuses a record; names it. Or the outcomes make up no metric.
        """
        self._scorer, self._renderer, self._match_thinking = scorer, renderer, match_thinking
        self.references = {record.id: reference_of(renderer, record) for record in records}
        parts = [reference.parts for reference in self.references.values()]
        self._calls, self._thinks = any(part.calls for part in parts), any(part.thinking for part in parts)
        self._columns: dict[str, None] = {}
        for record in records:
            self._columns |= dict.fromkeys(self._of_content(record, self.references[record.id].parts) or {})
        metrics_of([self(record, self.references[record.id].text) for record in records])
        metrics_of([self(record, "") for record in records])  # a scorer of the user's may stumble over silence

    def __call__(self, record: Record, text: str) -> Outcome:
        """The outcome of one answer.

        Args:
            record: that it answers, one of those given.
            text: the whole answer, as `ConversationRenderer.written_text` gives it.

        Raises:
            ValueError: the scorer refuses it; names the record.
        """
        reference, answer = self.references[record.id].parts, self.read(record, text)
        content = self._of_content(record, answer)
        outcome: dict[str, Any] = {**self._columns, **(content or {})}
        right = _right_parts(answer, reference, is_right(outcome))
        if self._calls or self._thinks or "exact_match" in self._columns:
            outcome["exact_match"] = all(right[part] for part in right if part != "thinking" or self._match_thinking)
        if self._calls or self._thinks:
            outcome["content_match"] = right["content"] if content else None
        if self._calls:
            outcome["calls_match"] = right["calls"] if reference.calls else None
        if self._thinks:
            outcome["thinking_match"] = right["thinking"] if reference.thinking else None
        return outcome

    def read(self, record: Record, text: str) -> Answer:
        """The parts of what a model wrote, told apart as those of the reference are."""
        calls, reads = record.conversation[-1].tool_calls, self.references[record.id].reads_calls
        return self._renderer.read_answer(text, record.example.tools, bool(calls), reads)

    def differing(self, record: Record, text: str) -> list[str]:
        """The parts of an answer that are not those of the reference."""
        reference, answer = self.references[record.id].parts, self.read(record, text)
        right = _right_parts(answer, reference, is_right(self._of_content(record, answer) or {}))
        return [part for part, is_same in right.items() if not is_same]

    def note(self) -> str:
        """A note for the reader if some calls could be compared as text only; else empty."""
        as_text = sum(not reference.reads_calls for reference in self.references.values())
        if not as_text:
            return ""
        return (
            f"The calls of {as_text} of {len(self.references)} references cannot be read back from what the chat "
            "template writes: they are compared as text, with the content."
        )

    def _of_content(self, record: Record, answer: Answer) -> Outcome | None:
        """The scorer's outcome; None where the reference is calls alone."""
        reference = self.references[record.id].parts
        if reference.calls and not reference.content:
            return None
        case = Case(record.id, reference.content, record.fields)
        return score_examples(self._scorer, [answer.content], [case])[0]


def _right_parts(answer: Answer, reference: Answer, content_is_right: bool | None) -> dict[str, bool]:
    """Whether each part is right; the content as the scorer says, or where it says nothing, as a text."""
    if content_is_right is None:
        content_is_right = answer.content.split() == reference.content.split()
    return {
        "thinking": answer.thinking.split() == reference.thinking.split(),
        "content": content_is_right,
        "calls": same_calls(answer.calls, reference.calls),
    }
