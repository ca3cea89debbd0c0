"""The rows that experiments read and write: questions with one answer each."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_jax.data.records import Record, RecordError
from sft_jax.data.written_rows import lines_of
from sft_jax.runs.workdir import write_whole

HELD_OUT = "held_out.jsonl"


def train_file(size: int) -> str:
    """Name of the file to train on of this size, in rows or whatever else an experiment counts."""
    return f"train_{size}.jsonl"


def write_rows(directory: Path, files: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
    """Writes rows as JSONL into a local directory, each file whole; what is there is written anew."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        write_whole(directory / name, lines_of(rows))


def chat_row(question: str, answer: str, **columns: object) -> dict[str, object]:
    """A question and its answer as a row, with other columns before them."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {**columns, "messages": turns}


def question_and_answer(record: Record) -> tuple[str, str]:
    """The texts of a row of the user's that is one question with its answer.

    Raises:
        RecordError: it is anything else.
    """
    roles = [message.role for message in record.conversation]
    if roles != ["user", "assistant"]:
        raise RecordError(f"{record.id}: expected one question and its answer, as user and assistant, got {roles}")
    asked, answered = record.conversation
    return asked.content, answered.content.strip()


def sizes_of(texts: Sequence[str]) -> list[int]:
    """The numbers of a flag `--sizes`, each once, the smallest first.

    Raises:
        ValueError: one of them is no number of rows, or there are none.
    """
    if not texts or not all(text.isdecimal() and int(text) > 0 for text in texts):
        raise ValueError(f"--sizes={','.join(texts)}: expected numbers of at least 1, such as 2,8,32")
    return sorted({int(text) for text in texts})
