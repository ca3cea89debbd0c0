"""Writes the data: the user's rows as questions that list all classes, in balanced samples of several sizes.

`train_2.jsonl` has two rows of each class, `train_8.jsonl` these and six more, and so on; `held_out.jsonl` is made of
the user's test rows. Every class is asked for in the same words, so that a model that was not trained can answer too.
"""

import collections
import random
from collections.abc import Sequence
from pathlib import Path

from experiments.rows import HELD_OUT, chat_row, question_and_answer, train_file, write_rows
from sft_jax.data.records import Record

_LENGTHS = ((8, "up to 8 words"), (16, "9 to 16 words"))  # of a message: the groups where the user's rows have none
_LONGEST = "17 words and more"


def write_data(
    directory: Path,
    train: Sequence[Record],
    test: Sequence[Record],
    classes: int,
    sizes: Sequence[int],
    held_out: int,
    seed: int,
) -> list[str]:
    """Writes the files.

    Args:
        directory: where they go.
        train: the user's rows to train on, each a message and its class.
        test: those to measure.
        classes: how many of them, the most frequent in `train`; 0: all.
        sizes: rows of a class in a training file.
        held_out: rows of a class in the held-out file, at most.
        seed: of the choice of rows.

    Returns:
        The classes, sorted.

    Raises:
        ValueError: a class has too few rows, or none in `test`.
    """
    counts = collections.Counter(_class_of(record) for record in train)
    names = sorted(sorted(counts, key=lambda name: (-counts[name], name))[: classes or None])
    drawn, measured = _by_class(train, names, seed), _by_class(test, names, seed)
    for name in names:
        if len(drawn[name]) < max(sizes):
            raise ValueError(
                f"class {name!r} has {len(drawn[name])} rows to train on, fewer than {max(sizes)}; give smaller "
                "--sizes, or fewer --classes"
            )
        if not measured[name]:
            raise ValueError(f"class {name!r} of --train has no row in --test; give other files, or fewer --classes")
    files = {train_file(size): [row for name in names for row in drawn[name][:size]] for size in sizes}
    files[HELD_OUT] = [row for name in names for row in measured[name][:held_out]]
    write_rows(directory, {file: [to_row(record, names) for record in records] for file, records in files.items()})
    return names


def to_row(record: Record, names: Sequence[str]) -> dict[str, object]:
    """A message as a question with all classes, the class as its answer, and the group it is measured in."""
    text, label = question_and_answer(record)
    question = f"Which of these classes is the message of? Answer with its name alone.\n\nClasses: {', '.join(names)}"
    words = len(text.split())
    length = next((name for most, name in _LENGTHS if words <= most), _LONGEST)
    asked = f"{question}\n\nMessage: {text}"
    return chat_row(asked, label, id=record.id, group=record.group or length)


def _by_class(records: Sequence[Record], names: Sequence[str], seed: int) -> dict[str, list[Record]]:
    """The rows of each class in an order that is drawn and does not depend on the other classes."""
    found: dict[str, list[Record]] = {name: [] for name in names}
    for record in records:
        if (label := _class_of(record)) in found:
            found[label].append(record)
    for name, of_class in found.items():
        random.Random(f"{seed}/{name}").shuffle(of_class)
    return found


def _class_of(record: Record) -> str:
    return question_and_answer(record)[1]
