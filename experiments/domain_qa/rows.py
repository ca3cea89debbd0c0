"""Writes the data: questions to train on, questions to measure, and all answers as the corpus that is searched.

`corpus.jsonl` has a document for each question, its whole answer. Rows have the answer's beginning, and in `document`
the id of its document. Of the rows in `held_out.jsonl` half are trained (`asked` is `trained`), half are `new`.
"""

import random
import re
from collections.abc import Sequence
from pathlib import Path

from experiments.rows import HELD_OUT, chat_row, question_and_answer, train_file, write_rows
from sft_jax.data.records import Record

CORPUS = "corpus.jsonl"
TRAINED, NEW = "trained", "new"


def write_data(
    directory: Path, records: Sequence[Record], train_rows: int, held_out: int, words: int, seed: int
) -> None:
    """Writes the files.

    Args:
        directory: where they go.
        records: of the user: questions and answers. Of those with the same question the first counts.
        train_rows: to train on.
        held_out: to measure: half of them trained ones.
        words: of an answer, at most; the corpus has all of it.
        seed: of the choice of rows.

    Raises:
        ValueError: there are fewer questions.
    """
    found: dict[str, str] = {}
    for record in records:
        found.setdefault(*question_and_answer(record))
    new = held_out // 2
    if len(found) < train_rows + new or train_rows < held_out - new:
        raise ValueError(
            f"{len(found)} different questions, expected {train_rows} to train on and {new} more to measure; of the "
            f"former {held_out - new} are measured too. Give smaller numbers of rows"
        )
    corpus = [{"text": f"{question}\n{answer}"} for question, answer in found.items()]
    rows = [
        {"document": f"{CORPUS}:{number}", "question": question, "answer": shortened(answer, words)}
        for number, (question, answer) in enumerate(found.items(), start=1)
    ]
    drawn = random.Random(f"questions/{seed}").sample(rows, train_rows + new)
    trained, others = drawn[:train_rows], drawn[train_rows:]
    measured = [(row, TRAINED) for row in trained[: held_out - new]] + [(row, NEW) for row in others]
    files = {
        CORPUS: corpus,
        train_file(train_rows): [_row(row) for row in trained],
        HELD_OUT: [_row(row, asked=asked) for row, asked in measured],
    }
    write_rows(directory, files)


def shortened(text: str, words: int) -> str:
    """The first sentences of a text that have at most so many words; of a longer first sentence its first words."""
    kept: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+", " ".join(text.split())):
        if kept and len(" ".join([*kept, sentence]).split()) > words:
            break
        kept.append(sentence)
    return " ".join(" ".join(kept).split()[:words])


def _row(row: dict[str, str], **columns: str) -> dict[str, object]:
    return chat_row(row["question"], row["answer"], document=row["document"], **columns)
