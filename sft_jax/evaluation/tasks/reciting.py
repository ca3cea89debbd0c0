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
SHORTEST = 4  # tokens


class Reciting:
    """Half of the answer is given, and the rest is verbatim if each of its tokens is the model's first choice."""

    def __init__(self, options: TaskOptions, records: Sequence[Record], renderer: ConversationRenderer):
        """Checks that there are answers.

        Args:
            options: not needed.
            records: conversations that end with an answer.
            renderer: not needed.

        Raises:
            ValueError: a record without an answer, or with one that has calls.
        """
        del options, renderer
        for record in records:
            question_of(record)
            if record.conversation[-1].tool_calls or not record.conversation[-1].content:
                raise ValueError(f"{record.id}: only answers that are text alone can be recited; leave this row out")

    def requests(self, record: Record) -> list[LogLikelihood]:
        """How likely the record's own answer is."""
        answer = record.conversation[-1].content
        return [LogLikelihood(question_of(record), (answer,), record.example.tools)]

    def score(self, record: Record, responses: Sequence[Response]) -> Outcome:
        """`verbatim`: the second half is what greedy decoding writes after the first; and how many tokens those are.

        An answer of fewer than four tokens, its end included, says nothing: it has no value.
        """
        del record
        (judged,) = responses[0].answers
        if judged.tokens < SHORTEST:
            return {"verbatim": None, "recited_share": None}
        recited = judged.tokens - math.ceil(GIVEN * judged.tokens)
        return {"verbatim": judged.greedy_tail >= recited, "recited_share": judged.greedy_tail / judged.tokens}

    def chosen(self, record: Record, responses: Sequence[Response]) -> str:
        """Nothing: the answer that was judged is the record's own, and the model wrote none."""
        del record, responses
        return ""
