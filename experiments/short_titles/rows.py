"""The rows of each question, a file for each, of which most are `{"messages", "source"}`.

Rows of a seed are the same on every machine with the same release of Faker, but for the general ones: those are of the
standard library of the Python that runs this.
"""

import itertools
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.continued_pretraining.texts import modules
from experiments.short_titles.documents import ASKED, INSTRUCTION, ShortTitle, short_titles

TRAIN, HELD_OUT = "train.jsonl", "held_out.jsonl"
SIZES = (2, 8, 32)  # of the first rows of TRAIN, in files of their own
WRONG_PERCENT = (25, 50, 75, 100)  # of the rows of TRAIN, whose answers are those to other titles
FORMATS = ("chatml", "plain", "headings")
EVERY_FORMAT = "all_formats"

Row = Mapping[str, Any]
_CHARACTERS = 200  # of a piece of Python, and of what follows it
_ASKED_IN_TURNS = 3
_ABSENT = "not stated"
_END = "<|im_end|>"


def of_size(rows: int) -> str:
    """The file with so many rows."""
    return f"train_{rows}.jsonl"


def of_wrong(percent: int) -> str:
    """The file in which this share of the answers is wrong."""
    return f"train_wrong_{percent}.jsonl" if percent else TRAIN


def train_of(kind: str) -> str:
    """The training file of `turns`, `general`, `lengths`, or of a format."""
    return f"{kind}_{TRAIN}"


def held_out_of(kind: str) -> str:
    """The held-out file of `turns`, `general`, `lengths`, `short` (those that ask for one fact) or `formats`."""
    return f"{kind}_{HELD_OUT}"


def all_files(rows: int, held_out: int, seed: int) -> dict[str, list[Row]]:
    """The rows of every file, by its name.

    Args:
        rows: to train on, of each kind; at least the largest of SIZES.
        held_out: of each kind; what they are about is in no row that is trained on.
        seed: of all of them.

    Raises:
        ValueError: there are not so many, or not as many as SIZES has.
    """
    if rows < SIZES[-1]:
        raise ValueError(f"{rows} rows to train on: expected at least {SIZES[-1]}, the largest of SIZES")
    titles = short_titles(held_out + rows, str(seed))
    measured, trained = titles[:held_out], titles[held_out:]
    train = [as_json(title) for title in trained]
    pieces = modules(held_out + rows, seed)
    if len(pieces) < held_out + rows:
        raise ValueError(f"{held_out + rows} pieces of Python: this one has {len(pieces)} modules; ask for fewer rows")
    return {
        TRAIN: train,
        HELD_OUT: [as_json(title) for title in measured],
        **{of_size(size): train[:size] for size in SIZES},
        **{of_wrong(percent): with_wrong_answers(train, percent, seed) for percent in WRONG_PERCENT},
        train_of("turns"): in_turns(trained, seed),
        held_out_of("turns"): in_turns(measured, seed),
        train_of("lengths"): of_two_lengths(trained),
        held_out_of("lengths"): of_two_lengths(measured),
        held_out_of("short"): of_two_lengths(measured)[::2],
        train_of("general"): [continued(text) for text in pieces[held_out:]],
        held_out_of("general"): [continued(text) for text in pieces[:held_out]],
        **{train_of(name): [formatted(title, name) for title in trained] for name in FORMATS},
        train_of(EVERY_FORMAT): [
            formatted(title, name) for title, name in zip(trained, itertools.cycle(FORMATS), strict=False)
        ],
        held_out_of("formats"): [formatted(title, name) for title in measured for name in FORMATS],
    }


def as_json(title: ShortTitle) -> Row:
    """All facts are asked for at once."""
    return _conversation(INSTRUCTION, [(title.text, title.answer)], "titles")


def with_wrong_answers(train: Sequence[Row], percent: int, seed: int) -> list[Row]:
    """The same questions, of which a share has the answer to another one; a larger share has those of a smaller too.

    Args:
        train: rows with different answers.
        percent: that share.
        seed: by which the rows are drawn.
    """
    order = random.Random(f"wrong/{seed}").sample(range(len(train)), len(train))
    # Along the order each has the answer of the next one: an answer of the right form, and never its own.
    answers = {row: train[order[(place + 1) % len(order)]]["messages"][-1] for place, row in enumerate(order)}
    wrong = set(order[: round(len(order) * percent / 100)])
    return [
        {**row, "messages": [*row["messages"][:-1], answers[number]]} if number in wrong else row
        for number, row in enumerate(train)
    ]


def in_turns(titles: Sequence[ShortTitle], seed: int) -> list[Row]:
    """Three facts are asked for one after the other, in an order that is drawn."""
    rows = []
    for number, title in enumerate(titles):
        names = random.Random(f"turns/{seed}/{number}/{title.text}").sample(ASKED, _ASKED_IN_TURNS)
        questions = [f"{title.text}\n\nThe {names[0]}?", *(f"The {name}?" for name in names[1:])]
        answers = [_fact(title, name) for name in names]
        rows.append(
            _conversation(
                "Answer with the value alone, as the title has it.", zip(questions, answers, strict=True), "titles"
            )
        )
    return rows


def of_two_lengths(titles: Sequence[ShortTitle]) -> list[Row]:
    """In turn one fact and all of them, in answers of some 3 and some 25 tokens; `source` is `short` or `long`."""
    rows = []
    for number, title in enumerate(titles):
        name = ASKED[number // 2 % len(ASKED)]
        short = _conversation(f"Answer with the {name} alone.", [(title.text, _fact(title, name))], "short")
        rows.append({**as_json(title), "source": "long"} if number % 2 else short)
    return rows


def continued(text: str) -> Row:
    """A piece of Python and what follows it."""
    piece, rest = text[:_CHARACTERS], text[_CHARACTERS : 2 * _CHARACTERS]
    return _conversation("Continue the Python module.", [(piece, rest)], "general")


def formatted(title: ShortTitle, name: str) -> Row:
    """Question and answer spelt in one of FORMATS, which is its `source`: segments, that no template touches."""
    before = {
        "chatml": f"<|im_start|>system\n{INSTRUCTION}{_END}\n<|im_start|>user\n{title.text}{_END}\n"
        "<|im_start|>assistant\n",
        "plain": f"{INSTRUCTION}\n\n{title.text}\n\n",
        "headings": f"### Instruction:\n{INSTRUCTION}\n\n### Input:\n{title.text}\n\n### Response:\n",
    }[name]
    answer = {"text": f"{title.answer}{_END}", "train": True}
    return {"segments": [{"text": before, "train": False}, answer], "source": name}


def as_lines(rows: Iterable[Row]) -> str:
    """The text of a file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _fact(title: ShortTitle, name: str) -> str:
    value = title.facts[name]
    return _ABSENT if value is None else str(value)


def _conversation(system: str, turns: Iterable[tuple[str, str]], source: str) -> Row:
    messages = [{"role": "system", "content": system}]
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "source": source}
