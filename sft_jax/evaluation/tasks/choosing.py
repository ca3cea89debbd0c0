"""The task of choosing one of several answers: multiple choice and classification by log-likelihood."""

import math
from collections.abc import Sequence

from sft_jax.data.conversations import Message
from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.evaluation.requests import Judged, LogLikelihood, Response
from sft_jax.evaluation.scorers import Case, Outcome, make_scorer
from sft_jax.evaluation.tasks.generating import question_of
from sft_jax.options import TaskOptions


class Choosing:
    """The most likely of the given answers is the model's.

    `choose_by` says how they are compared: `logprob`, the log-probability of the whole answer with the end of its turn;
    `per_token`, divided by its tokens, so that long answers are not at a disadvantage; or `unconditional`, less that of
    the same answer to an empty question, so that answers that are likely anyway are not at an advantage (pointwise
    mutual information; Holtzman et al. 2021).
    """

    def __init__(self, options: TaskOptions, records: Sequence[Record], renderer: ConversationRenderer):
        """Finds the choices of all records.

        Args:
            options: of the task.
            records: conversations that end with the right answer.
            renderer: not needed.

        Raises:
            ValueError: a record without a reference, without choices, with one twice, or whose reference is none of
                them.
        """
        del renderer
        self._options = options
        self._labels = () if options.choices_column else options.choices or _labels_of(records)
        self._score = make_scorer("labels", {"labels": list(self._labels)}) if self._labels else None
        for record in records:
            right, choices = _right_answer(record), self._choices(record)
            if right not in choices:
                raise ValueError(f"{record.id}: the answer {right[:60]!r} is none of the choices {list(choices)[:20]}")

    def _choices(self, record: Record) -> tuple[str, ...]:
        column = self._options.choices_column
        if not column:
            return self._labels
        found = record.fields.get(column)
        if not isinstance(found, Sequence) or isinstance(found, str) or len(found) < 2:
            raise ValueError(f"{record.id}: column {column!r} must be a list of two or more choices, got {found!r}")
        choices = tuple(str(choice) for choice in found)
        if len(set(choices)) < len(choices):
            raise ValueError(f"{record.id}: column {column!r} has a choice twice: {list(choices)}")
        return choices

    def requests(self, record: Record) -> list[LogLikelihood]:
        """All choices after the question; where they are compared with those, after an empty one too."""
        question, choices = question_of(record), self._choices(record)
        asked = [LogLikelihood(question, choices, record.example.tools)]
        if self._options.choose_by == "unconditional":
            asked.append(LogLikelihood((Message("user", ""),), choices))
        return asked

    def score(self, record: Record, responses: Sequence[Response]) -> Outcome:
        """Whether the most likely choice is the right one, and the probability of the right one among them."""
        values, choices, right = self._values(responses), self._choices(record), _right_answer(record)
        chosen = self.chosen(record, responses)
        largest = max(values)
        shares = [math.exp(value - largest) for value in values]
        outcome = {"probability": shares[choices.index(right)] / sum(shares)}
        if self._score is None:
            return {"accuracy": chosen == right, **outcome}
        return {**self._score(chosen, Case(record.id, right, record.fields)), **outcome}

    def chosen(self, record: Record, responses: Sequence[Response]) -> str:
        """The most likely choice; of equally likely ones the first."""
        values = self._values(responses)
        return self._choices(record)[max(range(len(values)), key=values.__getitem__)]

    def _values(self, responses: Sequence[Response]) -> list[float]:
        return [self._value(*judged) for judged in zip(*(response.answers for response in responses), strict=True)]

    def _value(self, judged: Judged, unconditional: Judged | None = None) -> float:
        if self._options.choose_by == "per_token":
            return judged.logprob / judged.tokens
        return judged.logprob - (unconditional.logprob if unconditional else 0.0)


def _right_answer(record: Record) -> str:
    question_of(record)  # checks that there is one
    return record.conversation[-1].content


def _labels_of(records: Sequence[Record]) -> tuple[str, ...]:
    """All answers that occur, sorted."""
    labels = tuple(sorted({_right_answer(record) for record in records}))
    if len(labels) < 2:
        raise ValueError(f"all rows have the answer {labels[0]!r}: there is nothing to choose from. Give the choices.")
    return labels
