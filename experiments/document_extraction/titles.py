"""Writes the data of the quickstart's task: vehicle titles, some of them in layouts that are never trained.

A row is `{"id", "messages", "layout"}`; `layout` is `known` or `new`. `train_50.jsonl` has the first 50 of the training
documents, and so on. Held-out documents are half of the one and half of the other.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from experiments.quickstart.documents import fresh_document, to_row
from experiments.quickstart.layouts import STATES, StateForm
from experiments.quickstart.titles import FIELDS
from experiments.rows import HELD_OUT, train_file, write_rows

NEW_FAMILIES = ("boxes", "prose")  # of layouts: the label above its value; running text
KNOWN, NEW = "known", "new"


def forms(layout: str) -> list[StateForm]:
    """The states' forms, each with those of its families that are known, or new; without forms that have none."""
    split = [
        dataclasses.replace(form, families=tuple(f for f in form.families if (f in NEW_FAMILIES) == (layout == NEW)))
        for form in STATES
    ]
    return [form for form in split if form.families]


def write_titles(directory: Path, sizes: Sequence[int], held_out: int, seed: int) -> tuple[str, ...]:
    """Writes the files, and returns the names of the fields; held-out documents do not depend on the sizes.

    Raises:
        ValueError: there are not so many documents.
    """
    seen: set[str] = set()
    layouts = [(KNOWN, NEW)[number % 2] for number in range(held_out)]
    measured = [_row(f"{seed}/held_out/{number}", seen, layout) for number, layout in enumerate(layouts)]
    trained = [_row(f"{seed}/train/{number}", seen, KNOWN) for number in range(max(sizes))]
    write_rows(directory, {HELD_OUT: measured} | {train_file(size): trained[:size] for size in sizes})
    return FIELDS


def documents_of(directory: Path) -> dict[str, str]:
    """The question with the document of each held-out row that was written there, by its id."""
    rows = (json.loads(line) for line in (directory / HELD_OUT).read_text(encoding="utf-8").rstrip("\n").split("\n"))
    return {row["id"]: row["messages"][0]["content"] for row in rows}


def _row(seed: str, seen: set[str], layout: str) -> dict[str, object]:
    return {"id": seed, **to_row(fresh_document(seed, seen, forms(layout))), "layout": layout}
