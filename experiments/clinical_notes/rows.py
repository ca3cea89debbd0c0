"""Writes the data: dialogues and their notes, the held-out ones in other words, and half of them of other matters."""

import random
from pathlib import Path

from experiments.clinical_notes.consultations import NONE, NOT_MEASURED, SECTIONS, invent
from experiments.rows import HELD_OUT, chat_row, train_file, write_rows

KNOWN, NEW = "known", "new"
QUESTION = "Write the note of this consultation."
INSTRUCTION = (
    f"You write notes of consultations, in five lines that begin with {', '.join(f'{name}:' for name in SECTIONS)} in "
    "this order. COMPLAINT has the complaint, how long it lasts as '5 days', and 'severity 6/10'. MEDICATION has each "
    "drug as 'ibuprofen 400 mg, 2x daily'. FINDINGS has 'temperature 37.1 C, pulse 80/min'. PLAN has the drug in the "
    "same form, 'for 7 days', and 'review in 20 days'. Write only what the dialogue says of the patient. Where nothing "
    f"is reported write '{NONE}', and of FINDINGS that were not taken '{NOT_MEASURED}'."
)


def write_data(directory: Path, train_rows: int, held_out: int, seed: int) -> None:
    """Writes the files; a row has a dialogue, its note, the `facts` by section, and as `terms` known or new.

    Args:
        directory: where they go.
        train_rows: to train on.
        held_out: in wordings that are not trained; every second one has complaints, drugs and allergens that are not.
        seed: of which all is a function; held-out rows do not depend on the number of training rows.
    """
    measured = [_row(f"{seed}/held_out/{number}", held_out=True, new=bool(number % 2)) for number in range(held_out)]
    trained = [_row(f"{seed}/train/{number}", held_out=False, new=False) for number in range(train_rows)]
    write_rows(directory, {HELD_OUT: measured, train_file(train_rows): trained})


def _row(name: str, *, held_out: bool, new: bool) -> dict[str, object]:
    drawn = invent(random.Random(f"notes/{name}"), held_out=held_out, new=new)
    columns = {"id": name, "facts": drawn.facts, "terms": NEW if new else KNOWN}
    return chat_row(f"{QUESTION}\n\n{drawn.dialogue}", drawn.note, **columns)
