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
from sft_jax.evaluation.scoring import score_examples


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


def read_parts(renderer: ConversationRenderer, text: str, record: Record, reference: Reference) -> Answer:
    """The parts of what a model wrote, told apart as those of the reference are."""
    calls = record.conversation[-1].tool_calls
    return renderer.read_answer(text, record.example.tools, bool(calls), reference.reads_calls)


def score_parts(
    scorer: Scorer,
    answers: Sequence[Answer],
    references: Sequence[Answer],
    example_ids: Sequence[str],
    match_thinking: bool = False,
) -> list[Outcome]:
    """One outcome for each example: the scorer's, of the content, and columns for the parts where there are others.

    `exact_match`: content and calls are right; thinking too, if `match_thinking`. `content_match`, `calls_match`,
    `thinking_match`: for examples whose reference has such a part. They are there if any reference thinks or calls.

    Raises:
        ValueError: see `score_examples`.
    """
    said = [number for number, reference in enumerate(references) if reference.content or not reference.calls]
    contents = [answers[number].content for number in said]
    cases = [Case(example_ids[number], references[number].content) for number in said]
    scored = dict(zip(said, score_examples(scorer, contents, cases), strict=True))
    columns = dict.fromkeys((column for outcome in scored.values() for column in outcome), None)
    has_calls, has_thinking = any(one.calls for one in references), any(one.thinking for one in references)
    outcomes = []
    for number, (answer, reference) in enumerate(zip(answers, references, strict=True)):
        outcome: dict[str, Any] = columns | dict(scored.get(number, {}))
        right = _right_parts(answer, reference, is_right(outcome))
        if has_calls or has_thinking or "exact_match" in columns:
            outcome["exact_match"] = all(right[part] for part in right if part != "thinking" or match_thinking)
        if has_calls or has_thinking:
            outcome["content_match"] = right["content"] if number in scored else None
        if has_calls:
            outcome["calls_match"] = right["calls"] if reference.calls else None
        if has_thinking:
            outcome["thinking_match"] = right["thinking"] if reference.thinking else None
        outcomes.append(outcome)
    return outcomes


def differing_parts(scorer: Scorer, answer: Answer, reference: Answer, example_id: str) -> list[str]:
    """The parts of an answer that are not those of the reference."""
    is_said = bool(reference.content or not reference.calls)
    case = Case(example_id, reference.content)
    scored = score_examples(scorer, [answer.content], [case])[0] if is_said else {}
    return [part for part, right in _right_parts(answer, reference, is_right(scored)).items() if not right]


def as_fields(answer: Answer) -> dict[str, Any]:
    """The parts for a line of JSON."""
    calls = [{"name": call.name, "arguments": call.arguments} for call in answer.calls]
    return {"thinking": answer.thinking, "content": answer.content, "calls": calls}


def _right_parts(answer: Answer, reference: Answer, content_is_right: bool | None) -> dict[str, bool]:
    """Whether each part is right; the content as the scorer says, or where it says nothing, as a text."""
    if content_is_right is None:
        content_is_right = answer.content.split() == reference.content.split()
    return {
        "thinking": answer.thinking.split() == reference.thinking.split(),
        "content": content_is_right,
        "calls": same_calls(answer.calls, reference.calls),
    }
