"""Answers that are labels: few, short, and repeated."""

from collections.abc import Sequence

from sft_jax.data.views import View

_LEAST_ANSWERS = 10
_ANSWERS_A_LABEL = 5  # on average at least so many answers a label, or they are texts and not labels
_LABEL_CHARACTERS = 80
_LABEL_WORDS = 8


def labels_of(views: Sequence[View]) -> list[str] | None:
    """The answers if they are labels: each short, on one line, and each given five times on average; else None."""
    answers = [view.answer.strip() for view in views]
    if len(answers) < _LEAST_ANSWERS or len(set(answers)) * _ANSWERS_A_LABEL > len(answers):
        return None
    if any(
        "\n" in label or len(label) > _LABEL_CHARACTERS or len(label.split()) > _LABEL_WORDS for label in set(answers)
    ):
        return None
    return answers
