"""Labels of several annotators: which one counts, and all of them for measures of agreement.

Used by the formats of annotation tools. An annotator's answer to a question is a value of JSON; the row made of them
has a column for each question, from which the templates of a table make the prompt and the answer.
"""

import collections
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from sft_jax.data.conversations import Chat
from sft_jax.data.formats import table
from sft_jax.data.formats.values import kind
from sft_jax.data.reading import Reading, RecordError


class Annotation(NamedTuple):
    """What one annotator says of a row.

    Attributes:
        annotator: who.
        answers: by question.
        final: whether it is marked as the truth.
    """

    annotator: str
    answers: dict[str, Any]
    final: bool = False


def parse_annotated(annotations: Sequence[Annotation], columns: dict, where: str, reading: Reading) -> Chat:
    """The question and answer that the templates make of a row with the labels that count.

    Raises:
        RecordError: no label counts, or the templates do not fit; a question that has the name of a column.
    """
    if reading.prompts_only:
        return table.parse(columns, where, reading)
    answers = counting_answers(annotations, where, reading)
    both = sorted(answers.keys() & columns.keys())
    if both:
        raise RecordError(f"{where}: {both[0]!r} is a column and a question. Rename one of them in the export.")
    return table.parse(columns | answers, where, reading)


def counting_answers(annotations: Sequence[Annotation], where: str, reading: Reading) -> dict[str, Any]:
    """The answer to each question that counts, by `reading.label`.

    Raises:
        RecordError: nobody annotated the row, annotators differ, no majority, nobody or several adjudicated.
    """
    if not annotations:
        raise RecordError(f"{where}: nobody annotated the row. Export annotated rows only, or drop such rows.")
    names = [annotation.annotator for annotation in annotations]
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice and reading.label != "adjudicated":
        raise RecordError(f"{where}: annotator {twice[0]!r} annotated the row twice. Keep one of the annotations.")
    if reading.label == "adjudicated":
        return _adjudicated(annotations, where, reading).answers
    questions = dict.fromkeys(question for annotation in annotations for question in annotation.answers)
    return {question: _agreed(question, annotations, where, reading) for question in questions}


def _adjudicated(annotations: Sequence[Annotation], where: str, reading: Reading) -> Annotation:
    who = reading.adjudicator
    found = [a for a in annotations if (a.annotator == who if who else a.final)]
    if len(found) == 1:
        return found[0]
    whose = f"annotator {who!r}" if who else "a ground truth"
    hint = "" if who else " Mark it in the tool, or name who adjudicates: --config.data.reading.adjudicator."
    raise RecordError(
        f"{where}: expected one annotation of {whose}, there are {len(found)}; annotators are: "
        f"{', '.join(repr(a.annotator) for a in annotations)}.{hint}"
    )


def _agreed(question: str, annotations: Sequence[Annotation], where: str, reading: Reading) -> Any:
    """The answer of all, or of most."""
    given = [annotation.answers[question] for annotation in annotations if question in annotation.answers]
    counts = collections.Counter(map(label_text, given)).most_common()
    votes = ", ".join(f"{label!r} {count}" for label, count in counts)
    if reading.label == "unanimous" and len(counts) > 1:
        raise RecordError(
            f"{where}: annotators differ on {question!r}: {votes}. Decide: --config.data.reading.label=majority or "
            "adjudicated."
        )
    if len(counts) > 1 and counts[0][1] == counts[1][1] and reading.ties == "error":
        raise RecordError(
            f"{where}: no majority on {question!r}: {votes}. Adjudicate it (--config.data.reading.label=adjudicated), "
            "or take the first of those with most votes by --config.data.reading.ties=first."
        )
    return next(answer for answer in given if label_text(answer) == counts[0][0])  # the first of the most frequent


def label_text(answer: Any) -> str:
    """An answer as one text: text as it stands, everything else as JSON; equal if and only if the answers are."""
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False, sort_keys=True, default=repr)


def only_one(values: list) -> Any:
    """The value of a list of one, else the list."""
    return values[0] if len(values) == 1 else values


def listed(value: object, where: str, expected: str) -> list:
    """The value itself.

    Raises:
        RecordError: it is no list.
    """
    if not isinstance(value, list):
        raise RecordError(f"{where}: expected {expected}, got {kind(value)}.")
    return value
