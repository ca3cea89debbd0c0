"""Writes the data of NLU++: what a guest says, as JSON of intents and of slots with their values.

Rows of the user's file are `{"text", "intents", "slots", "fold"}`, and an ontology names all intents and slots. A slot
that is not said is not in the answer. Dates are written as `2022-03-16` and times as `18:35`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.rows import HELD_OUT, chat_row, train_file, write_rows
from sft_jax.data.reading import Reading
from sft_jax.data.records import Record, read_records

INTENTS = "intents"
_HELD_OUT_SHARE = 5  # every fifth fold is held out: the last ones


def write_utterances(directory: Path, path: str, ontology: str, sizes: Sequence[int]) -> tuple[str, ...]:
    """Writes the files: the last fifth of the folds is held out, the first rows of the others are trained.

    Returns:
        The names of the fields: the intents, and the slots.

    Raises:
        ValueError: a row without text or fold, a name that is not in the ontology, fewer than five folds, or fewer rows
            than are to be trained.
    """
    named = json.loads(Path(ontology).read_text(encoding="utf-8"))
    records = read_records(path, Reading(prompt_template="{text}", answer_template="{fold}"))
    said = {kind: {name for record in records for name in record.fields.get(kind) or ()} for kind in (INTENTS, "slots")}
    for kind, names in said.items():
        if unknown := sorted(names - set(named.get(kind, ()))):
            raise ValueError(f"{path}: {kind} {unknown} are not in {ontology}; give the ontology of these rows")
    intents, slots = ([name for name in named[kind] if name in said[kind]] for kind in (INTENTS, "slots"))
    folds = sorted({int(record.fields["fold"]) for record in records})
    last = folds[len(folds) - len(folds) // _HELD_OUT_SHARE :]
    if not last:
        raise ValueError(f"{path}: {len(folds)} folds, expected at least {_HELD_OUT_SHARE}, the last of them held out")
    rows = [(record.fields["fold"] in last, _row(record, intents, slots)) for record in records]
    trained = [row for is_last, row in rows if not is_last]
    if len(trained) < max(sizes):
        raise ValueError(f"{path}: {len(trained)} rows to train on, fewer than {max(sizes)}; give smaller --sizes")
    files = {HELD_OUT: [row for is_last, row in rows if is_last]}
    write_rows(directory, files | {train_file(size): trained[:size] for size in sizes})
    return (INTENTS, *slots)


def answer_of(row: Mapping[str, Any]) -> str:
    """The right answer to a row: one line of JSON, the intents first."""
    values = {name: value_of(slot) for name, slot in (row.get("slots") or {}).items()}
    return json.dumps({INTENTS: list(row.get(INTENTS) or ()), **values}, ensure_ascii=False)


def value_of(slot: Mapping[str, Any]) -> object:
    """The value of a slot: a day, a time, a number or a name; where there is none, what was said."""
    value = slot.get("value")
    if isinstance(value, Mapping):
        if "year" in value:
            return "{year:04}-{month:02}-{day:02}".format(**value)
        return "{hour:02}:{minute:02}".format(**value)
    return slot["text"] if value is None else value


def _row(record: Record, intents: Sequence[str], slots: Sequence[str]) -> dict[str, object]:
    question = (
        "Read what the guest says and answer with one JSON object only. Its key intents has a list of these: "
        f"{', '.join(intents)}. Its other keys are those of these that are said: {', '.join(slots)}. Write days as "
        "2022-03-31 and times as 18:30; today is 2022-03-15, a Tuesday."
    )
    return chat_row(f"{question}\n\n{record.fields['text']}", answer_of(record.fields), id=record.id)
