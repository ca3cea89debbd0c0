"""The task of writing an answer, which a scorer compares with the record's own."""

from collections.abc import Sequence

from sft_jax.data.conversations import Conversation
from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.evaluation.parts import PartScorer
from sft_jax.evaluation.repeated_answers import best_of_n, likeliest_of_n, pass_outcomes
from sft_jax.evaluation.requests import Generate, Response
from sft_jax.evaluation.scorers import Outcome, make_scorer
from sft_jax.evaluation.scorers.cases import is_right
from sft_jax.evaluation.worth import share_of
from sft_jax.generation import STOP, Sampling
from sft_jax.options import TaskOptions


class Generating:
    """An answer is written and scored, thinking and calls apart from its content."""

    def __init__(self, options: TaskOptions, records: Sequence[Record], renderer: ConversationRenderer):
        """Reads the references.

        Args:
            options: of the task.
            records: conversations that end with the reference answer.
            renderer: whose template tells the parts of an answer apart.

        Raises:
            ValueError: a record without a reference, one that the template refuses, or that the scorer cannot read; or
                a scorer that several samples do not go with.
        """
        self._options = options
        self._sampling = Sampling(options.temperature, options.top_k, options.top_p)
        for record in records:
            question_of(record)
        scorer = make_scorer(options.scorer, options.scorer_options)
        self._scorer = PartScorer(scorer, records, renderer, options.match_thinking)
        self._best_by = _best_by(self._scorer(records[0], "")) if options.samples > 1 else ""
        if self._best_by is None:
            raise ValueError(
                f"samples={options.samples}: scorer {options.scorer!r} neither calls an answer right or wrong"
                ", which pass@k counts, nor has a share by which one of n is the best"
            )

    def requests(self, record: Record) -> list[Generate]:
        """The answer, as often as the task says."""
        limits = (self._options.max_new_tokens, record.example.tools, self._options.samples, self._sampling)
        return [Generate(question_of(record), *limits)]

    def score(self, record: Record, responses: Sequence[Response]) -> Outcome:
        """The scorer's outcome, and whether the model ended the answer itself (`stopped`).

        Of several samples, how likely it is that one of k is right (`pass@k`; `pass@1` is the mean, and that of all
        is the best of them by the scorer); of a scorer that only has shares, the mean of the first, and the best
        (`best_of_n`). And what the likeliest of them is worth (`likeliest_of_n`), by the sum of its log-probabilities.
        """
        answers = responses[0].answers
        outcomes = [self._scorer(record, answer.text) for answer in answers]
        if len(outcomes) == 1:
            return {**outcomes[0], "stopped": answers[0].finish_reason == STOP}
        count = len(outcomes)
        (likeliest,) = likeliest_of_n([outcomes], [[answer.logprob for answer in answers]])
        if self._best_by:
            (best,) = best_of_n([outcomes], self._best_by)
            return {
                self._best_by: _mean([outcome[self._best_by] for outcome in outcomes]),
                f"{self._best_by}_best_of_{count}": best[self._best_by],
                f"{self._best_by}_likeliest_of_{count}": likeliest[self._best_by],
            }
        powers = [2**power for power in range(count.bit_length())]
        (passed,) = pass_outcomes([outcomes], sorted({*powers, count}))
        return {**passed, f"likeliest_of_{count}": is_right(likeliest)}

    def differs(self, record: Record, answer: str) -> list[str]:
        """The parts of an answer that are not those of the reference."""
        return self._scorer.differing(record, answer)

    def note(self) -> str:
        """What a reader of the scores should know; empty for nothing."""
        return self._scorer.note()


def _best_by(outcome: Outcome) -> str | None:
    """The column by which the best of several answers is told: empty where answers are right or wrong; None: none."""
    if is_right(outcome) is not None:
        return ""
    return share_of(outcome)


def _mean(values: Sequence[float | None]) -> float | None:
    """Of those answers that have a value; None where none has."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def question_of(record: Record) -> Conversation:
    """The conversation without its final answer.

    Raises:
        ValueError: it does not end with an assistant's answer.
    """
    if not record.conversation or record.conversation[-1].role != "assistant":
        raise ValueError(f"{record.id}: a held-out row must end with the assistant's answer, the reference")
    return record.conversation[:-1]
