"""The task of reciting: does the model write a row's answer word for word, once it is given the beginning?

Measured on rows that were trained and on rows that were held out, it tells what was learnt by heart: answers that
follow from the question alone are recited on both, memorised ones on rows of training only (Carlini et al. 2023).
"""

import math
from collections.abc import Sequence

from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.evaluation.requests import LogLikelihood, Response
from sft_jax.evaluation.scorers import Outcome
from sft_jax.evaluation.tasks.generating import question_of
from sft_jax.options import TaskOptions

GIVEN = 0.5  # share of an answer's tokens that is given


class Reciting:
    """Half of the answer is given, and the rest is verbatim if each of its tokens is the model's first choice."""

    def __init__(self, options: TaskOptions, records: Sequence[Record], renderer: ConversationRenderer):
        """Checks that there are answers.

        Args:
            options: not needed.
            records: conversations that end with an answer.
            renderer: not needed.

        Raises:
            ValueError: a record without an answer.
        """
        del options, renderer
        for record in records:
            question_of(record)

    def requests(self, record: Record) -> list[LogLikelihood]:
        """How likely the record's own answer is."""
        answer = record.conversation[-1].content
        return [LogLikelihood(question_of(record), (answer,), record.example.tools)]

    def score(self, record: Record, responses: Sequence[Response]) -> Outcome:
        """`verbatim`: the second half is what greedy decoding writes after the first; and how many tokens those are."""
        del record
        (judged,) = responses[0].answers
        recited = judged.tokens - math.ceil(GIVEN * judged.tokens)
        return {"verbatim": judged.greedy_tail >= recited, "recited_share": judged.greedy_tail / judged.tokens}
