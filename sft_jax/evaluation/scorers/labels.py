"""Classification: one label as the answer."""

import re
from collections.abc import Sequence

from sft_jax.evaluation.scorers.cases import LABELS, OTHER, Case, Outcome, Scorer


def labels(*, labels: Sequence[str] | None = None, anywhere: bool = False) -> Scorer:
    """`accuracy`, and the two labels of which macro-F1 and the confusion matrix are made.

    Case, white space, and quotes and marks around an answer are ignored. An answer that is none of the `labels` is
    wrong and counts as `(other)`; where no labels are given, they are those that occur among the references. With
    `anywhere` an answer has a label if exactly one of the labels occurs in it as a whole word or phrase.

    Raises:
        ValueError: labels that are equal but for case; `anywhere` without labels; when scoring, a reference that is
            empty or none of the labels.
    """
    known = None if labels is None else {_plain(label): label for label in labels}
    if known is not None and (len(known) < len(labels) or "" in known or _plain(OTHER) in known or len(known) < 2):
        raise ValueError(
            f"labels: expected at least two different labels, none of them empty or {OTHER!r}, got {labels}"
        )
    if anywhere and known is None:
        raise ValueError("labels: anywhere=True looks for labels in the answer; give them as the option 'labels'")
    words = {plain: re.compile(rf"(?<!\w){re.escape(plain)}(?!\w)") for plain in known or ()}

    def label_of(text: str) -> str:
        plain = _plain(text)
        if known is None:
            return plain or OTHER
        if plain in known:
            return known[plain]
        found = [label for label in known if anywhere and words[label].search(plain)]
        # "not spam" has "spam" in it: of labels within labels the longest one is meant.
        found = [label for label in found if not any(label != other and label in other for other in found)]
        return known[found[0]] if len(found) == 1 else OTHER

    def score(prediction: str, case: Case) -> Outcome:
        expected = _plain(case.reference) if known is None else known.get(_plain(case.reference), OTHER)
        if expected in ("", OTHER):
            among = f"is none of the labels {list(labels)}" if labels is not None else "is no label"
            raise ValueError(f"labels: the reference {case.reference[:80]!r} {among}")
        predicted = label_of(prediction)
        return {"accuracy": predicted == expected, LABELS[0]: predicted, LABELS[1]: expected}

    return score


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip("\"'`*.,;:!?“”‘’ ")
