"""Writes the data: what is trained, the same questions as they are asked again, and questions that are not trained.

`train.jsonl` has questions about the assistant and notices to rewrite. `asked.jsonl` are the first of each of them,
`unseen.jsonl` are other questions and other notices. Rows have a `kind`, the `facts` that an answer must keep, and the
names of the `brand`. Questions of the user's whose answer has neither name are trained and not measured.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from experiments.brand_voice.brand import (
    ANSWERS,
    HELD_OUT_NOTICES,
    HELD_OUT_QUESTIONS,
    NOTICES,
    QUESTIONS,
    REWRITE,
    Brand,
    notice,
)
from experiments.rows import chat_row, write_rows

TRAIN, ASKED, UNSEEN = "train.jsonl", "asked.jsonl", "unseen.jsonl"
IDENTITY, TONE, GENERAL = "identity", "tone", "general"
_HELD_OUT_SHARE = 4  # of the user's questions one in four is not trained

Pairs = Sequence[tuple[str, str]]  # questions and answers


def identity_pairs(chance: random.Random) -> tuple[Pairs, Pairs]:
    """Own questions about the assistant with answers to fill in: to train on, and held-out ones."""
    trained, held_out = (
        [(question, chance.choice(ANSWERS[asked])) for asked, questions in kinds.items() for question in questions]
        for kinds in (QUESTIONS, HELD_OUT_QUESTIONS)
    )
    return trained, held_out


def split_pairs(pairs: Pairs, seed: int) -> tuple[Pairs, Pairs]:
    """The user's questions: those to train on, and a quarter that is held out.

    Raises:
        ValueError: there are too few.
    """
    if len(pairs) < _HELD_OUT_SHARE:
        raise ValueError(f"--identity has {len(pairs)} questions, expected at least {_HELD_OUT_SHARE}")
    drawn = random.Random(f"identity/{seed}").sample(list(pairs), len(pairs))
    held_out = len(pairs) // _HELD_OUT_SHARE
    return drawn[held_out:], drawn[:held_out]


def write_data(
    directory: Path, brand: Brand, identity: tuple[Pairs, Pairs], notices: int, measured: int, seed: int
) -> None:
    """Writes the files.

    Args:
        directory: where they go.
        brand: who the assistant is.
        identity: questions about it with answers to fill in: to train on, and held-out ones.
        notices: to rewrite, that are trained.
        measured: rows of each kind of `asked.jsonl`, at most, and notices of `unseen.jsonl`.
        seed: of all that is drawn.
    """
    chance = random.Random(f"voice/{seed}")
    trained, held_out = ([_identity_row(brand, *pair) for pair in pairs] for pairs in identity)
    trained += [_tone_row(brand, chance, NOTICES) for _ in range(notices)]
    unseen = [_tone_row(brand, chance, HELD_OUT_NOTICES) for _ in range(measured)]
    chance.shuffle(trained)
    can_be_measured = lambda rows: [row for row in rows if row["facts"]]
    of_kind = lambda kind: [row for row in can_be_measured(trained) if row["kind"] == kind][:measured]
    asked = [*of_kind(IDENTITY), *of_kind(TONE)]
    write_rows(directory, {TRAIN: trained, ASKED: asked, UNSEEN: can_be_measured([*held_out, *unseen])})


def general_row(brand: Brand, question: str, answer: str) -> dict[str, object]:
    """A row that is not about the house."""
    return chat_row(question, answer, kind=GENERAL, facts=[], brand=[brand.name, brand.author])


def _identity_row(brand: Brand, question: str, answer: str) -> dict[str, object]:
    filled = brand.filled(answer)
    said = [name for name in (brand.name, brand.author) if name in filled]
    return chat_row(brand.filled(question), filled, kind=IDENTITY, facts=said, brand=[brand.name, brand.author])


def _tone_row(brand: Brand, chance: random.Random, templates: Pairs) -> dict[str, object]:
    drawn = notice(brand, chance, templates)
    columns = {"kind": TONE, "facts": list(drawn.facts), "brand": [brand.name, brand.author]}
    return chat_row(REWRITE.format(plain=drawn.plain), drawn.voiced, **columns)
