"""Writes the quickstart's data: vehicle titles and their JSON extractions.

`train.jsonl` is trained on, `validation.jsonl` (a 25th as many rows) is measured during the run, `held_out.jsonl` at
the end.

A row is `{"messages": [user, assistant]}`. Everything is a pure function of (train_rows, held_out_rows, seed), and the
held-out rows of (held_out_rows, seed) alone: more training rows do not change them. The word lists of Faker are an
input too, so its version is written beside the data (`documents.json`).
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import faker
from faker import Faker

from experiments.quickstart.layouts import STATES, StateForm, print_title
from experiments.quickstart.prompts import answer, question
from experiments.quickstart.titles import Title, invent_title

TRAIN_FILE, VALIDATION_FILE, HELD_OUT_FILE = "train.jsonl", "validation.jsonl", "held_out.jsonl"
META_FILE = "documents.json"
SEED = 0  # of the quickstart's documents
TRIES_A_ROW = 100

Row = dict[str, list[dict[str, str]]]


@dataclasses.dataclass(frozen=True)
class Document:
    """A document's text, what it states, and the complete facts behind it (to keep documents apart)."""

    text: str
    stated: Title
    facts: Title


def make_document(seed: str, forms: Sequence[StateForm] = STATES) -> Document:
    """The document of a seed in one of the forms; a private Faker instance, so no global state is read or left."""
    fake = Faker("en_US")
    fake.seed_instance(seed)
    form = fake.random_element(forms)
    facts = invent_title(fake, form.title_pattern)
    text, stated = print_title(fake, facts, form)
    return Document(text, stated, facts)


def make_documents(
    train_rows: int, held_out_rows: int, seed: int, unlike: Iterable[Document] = ()
) -> tuple[list[Document], list[Document]]:
    """Training and held-out documents; no two of them all share a VIN, an owner, a title number or their text.

    Nor do they share any with a document of `unlike`. Raises ValueError where the numbers of rows are negative, or so
    large that no fresh document is found.
    """
    if train_rows < 0 or held_out_rows < 0:
        raise ValueError(f"numbers of rows must be >= 0, got {train_rows=} and {held_out_rows=}")
    seen = set().union(*map(_marks, unlike))
    held_out = [fresh_document(f"{seed}/held_out/{row}", seen) for row in range(held_out_rows)]
    train = [fresh_document(f"{seed}/train/{row}", seen) for row in range(train_rows)]
    return train, held_out


def to_row(document: Document) -> Row:
    """The document as a conversation of one question and one answer."""
    return {
        "messages": [
            {"role": "user", "content": question(document.text)},
            {"role": "assistant", "content": answer(document.stated)},
        ]
    }


def lines_of(documents: Sequence[Document]) -> str:
    """The documents as lines of JSON, each a row."""
    return "".join(json.dumps(to_row(document), ensure_ascii=False) + "\n" for document in documents)


def write_dataset(directory: str | os.PathLike, train_rows: int, held_out_rows: int, seed: int) -> bool:
    """Writes the files into a local directory, each whole or not at all; True if it wrote, False if they were there.

    `documents.json` is written last and holds the parameters and the files' sha256; where it agrees with
    what is asked and what is there, nothing is done.
    """
    directory = Path(directory)
    parameters = {
        "train_rows": train_rows,
        "held_out_rows": held_out_rows,
        "seed": seed,
        "generator": _generator_digest(),
        "faker_version": faker.VERSION,
    }
    if _is_there(directory, parameters):
        return False
    directory.mkdir(parents=True, exist_ok=True)
    validation_rows = max(2, train_rows // 25)
    train, held_out = make_documents(train_rows + validation_rows, held_out_rows, seed)
    files = {TRAIN_FILE: train[:train_rows], VALIDATION_FILE: train[train_rows:], HELD_OUT_FILE: held_out}
    digests = {}
    for name, documents in files.items():
        text = lines_of(documents)
        _write_whole(directory / name, text)
        digests[name] = hashlib.sha256(text.encode()).hexdigest()
    _write_whole(directory / META_FILE, json.dumps({**parameters, "sha256": digests}, indent=2) + "\n")
    return True


def fresh_document(seed: str, seen: set[str], forms: Sequence[StateForm] = STATES) -> Document:
    """A document that shares no VIN, owner, title number or text with those in `seen`, to which it is added.

    Raises ValueError where none is found.
    """
    for attempt in range(TRIES_A_ROW):
        document = make_document(f"{seed}/{attempt}", forms)
        marks = _marks(document)
        if seen.isdisjoint(marks):
            seen |= marks
            return document
    raise ValueError(f"no document unlike the others found for {seed} in {TRIES_A_ROW} tries; ask for fewer rows")


def _marks(document: Document) -> set[str]:
    """What tells a document from others."""
    facts = document.facts
    return {
        f"vin {facts.vin}",
        f"owner {str(facts.owner).casefold()}",
        f"title number {facts.title_number}",
        document.text,
    }


def _is_there(directory: Path, parameters: dict[str, int | str]) -> bool:
    meta = directory / META_FILE
    if not meta.is_file():
        return False
    found = json.loads(meta.read_text(encoding="utf-8"))
    if {name: value for name, value in found.items() if name != "sha256"} != parameters:
        return False
    return all(
        (directory / name).is_file() and hashlib.sha256((directory / name).read_bytes()).hexdigest() == digest
        for name, digest in found["sha256"].items()
    )


def _generator_digest() -> str:
    """Of this folder's source, so that documents of an edited generator are not mistaken for the present one's."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
