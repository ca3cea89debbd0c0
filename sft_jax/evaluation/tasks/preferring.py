"""The task of preferring: is the chosen answer of a pair likelier than the rejected one, as preference methods want it?

Rows are pairs (`{"prompt", "chosen", "rejected"}`), and nothing is written.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from sft_jax.data.conversations import Message, Preference
from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.evaluation.requests import LogLikelihood, Response
from sft_jax.evaluation.scorers import Outcome
from sft_jax.options import TaskOptions

PREFER = "prefer"  # kind of the task


@dataclasses.dataclass(frozen=True)
class Reference:
    """What another model says of pairs.

    Attributes:
        name: of the model.
        margins: id of a record -> log-probability of its chosen answer less that of the rejected one (nats).
    """

    name: str
    margins: Mapping[str, float]


class Preferring:
    """The answer that the model gives the higher log-probability is the one it prefers."""

    def __init__(
        self,
        options: TaskOptions,
        records: Sequence[Record],
        renderer: ConversationRenderer,
        reference: Reference | None = None,
    ):
        """Checks that there are pairs.

        Args:
            options: not needed.
            records: pairs.
            renderer: not needed.
            reference: another model, with which this one is compared.

        Raises:
            ValueError: a record that is no pair, or has an answer of several messages.
        """
        del options, renderer
        self._reference = reference
        for record in records:
            answers_of(record)

    def requests(self, record: Record) -> list[LogLikelihood]:
        """How likely the chosen and the rejected answer are."""
        return [LogLikelihood(record.example.prompt, answers_of(record), record.example.tools)]

    def score(self, record: Record, responses: Sequence[Response]) -> Outcome:
        """Whether the chosen answer is the likelier one.

        `preference_accuracy`: by the log-probability of the whole answer; `preference_accuracy_per_token`: by that
        divided by its tokens; with a reference, `preference_accuracy_over_reference`: by the ratio of both models,
        which is DPO's reward. An answer as likely as the other is no preference: it has no value.
        """
        chosen, rejected = responses[0].answers
        margin = self.margin(responses)
        outcome = {
            "preference_accuracy": _is_preferred(margin),
            "preference_accuracy_per_token": _is_preferred(
                chosen.logprob / chosen.tokens - rejected.logprob / rejected.tokens
            ),
        }
        if self._reference is not None:
            outcome["preference_accuracy_over_reference"] = _is_preferred(margin - self._reference.margins[record.id])
        return outcome

    def margin(self, responses: Sequence[Response]) -> float:
        """Log-probability of the chosen answer less that of the rejected one (nats)."""
        chosen, rejected = responses[0].answers
        return chosen.logprob - rejected.logprob

    def note(self) -> str:
        """Which reference it is; empty without one."""
        return f"The reference is {self._reference.name}." if self._reference else ""


def _is_preferred(margin: float) -> bool | None:
    return margin > 0 if margin else None


def answers_of(record: Record) -> tuple[Message, Message]:
    """The chosen and the rejected answer of a pair.

    Raises:
        ValueError: the record is no pair, or has an answer of several messages.
    """
    if not isinstance(record.example, Preference):
        raise ValueError(
            f'{record.id}: kind=prefer compares two answers to a prompt, and this row has one; expected {{"prompt", '
            '"chosen", "rejected"}'
        )
    for name in ("chosen", "rejected"):
        if len(getattr(record.example, name)) != 1:
            raise ValueError(
                f'{record.id}: "{name}" must be one message of the assistant to be judged; leave this row out'
            )
    return record.example.chosen[0], record.example.rejected[0]
