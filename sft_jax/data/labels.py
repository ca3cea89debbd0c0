"""Answers that are labels: few, short, and repeated."""

from collections.abc import Sequence

from sft_jax.data.views import View

_LEAST_ROWS = 10
_ROWS_A_LABEL = 5  # at least so many rows a label on average, or answers are texts and not labels
_LABEL_CHARACTERS = 80
_LABEL_WORDS = 8


def labels_of(views: Sequence[View]) -> list[str] | None:
    """The answers if they are labels: each short, on one line, and on average five rows with the same; else None."""
    answers = [view.answer.strip() for view in views]
    if len(answers) < _LEAST_ROWS or len(set(answers)) * _ROWS_A_LABEL > len(answers):
        return None
    if any(
        "\n" in label or len(label) > _LABEL_CHARACTERS or len(label.split()) > _LABEL_WORDS for label in set(answers)
    ):
        return None
    return answers
