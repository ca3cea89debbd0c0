"""Tasks: what is asked about each record, and how the responses are scored.

A task is one small file with a class, and one entry of `config.evaluation.tasks`:

- `requests(record) -> requests`, a list of `Generate` and `LogLikelihood`;
- `score(record, responses) -> outcome`, a dict of plain values (`evaluation/metrics.py` says what they mean).

The same object serves evaluations inside a run, `python -m sft_jax.evaluate`, and whatever else scores answers.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.evaluation.requests import Request, Response
from sft_jax.evaluation.scorers import Outcome
from sft_jax.evaluation.scorers.imported import imported
from sft_jax.evaluation.tasks.choosing import Choosing
from sft_jax.evaluation.tasks.generating import Generating
from sft_jax.evaluation.tasks.preferring import Preferring
from sft_jax.evaluation.tasks.reciting import Reciting
from sft_jax.options import TaskOptions


class Task(Protocol):
    """What is measured on records."""

    def requests(self, record: Record) -> Sequence[Request]:
        """What is asked about a record."""

    def score(self, record: Record, responses: Sequence[Response]) -> Outcome:
        """What the responses to its requests are worth."""


KINDS: dict[str, Callable[..., Task]] = {
    "generate": Generating,
    "choose": Choosing,
    "recite": Reciting,
    "prefer": Preferring,
}


def make_task(options: TaskOptions, records: Sequence[Record], renderer: ConversationRenderer) -> Task:
    """The task that an entry of `config.evaluation.tasks` describes.

    A class of the user's, `package.module:Class`, is called with the same arguments.

    Args:
        options: of the entry.
        records: that are measured.
        renderer: of the model that is measured.

    Raises:
        ValueError: there is no such kind or class, or a record that it cannot ask about or score.
    """
    made = imported(options.kind, "task") if ":" in options.kind else KINDS[options.kind]
    return made(options, records, renderer)
