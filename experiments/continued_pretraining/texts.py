"""Texts of a new domain and of an old one, as rows `{"text", "source"}` to train on and to hold out.

New is a form of document that no model has seen: the quickstart's vehicle titles, without question or answer. Old is
what pretrained models have read much of: Python, of which the standard library of the interpreter that runs this is at
hand wherever the experiment is. Either may be a file of the user's own instead.
"""

import json
import random
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from experiments.quickstart.documents import make_document
from sft_jax.runs.workdir import write_whole

NEW, OLD = "domain", "general"  # sources of the mixture of configs/continued.py, and groups of held-out rows
HELD_OUT_FILE = "held_out.jsonl"
_LONGEST = 12_000  # characters of an old text: what is longer is cut, so that no single module is most of the data
_SHORTEST = 500


def titles(count: int, seed: int) -> list[str]:
    """Vehicle titles, each a document of some 100 to 150 tokens."""
    return [make_document(f"{seed}/continued/{number}").text for number in range(count)]


def modules(count: int, seed: int) -> list[str]:
    """Modules of Python's standard library, in an order that is drawn; fewer than `count` where there are no more."""
    library = Path(sysconfig.get_path("stdlib"))
    packages = sorted([*library.glob("*.py"), *library.glob("[a-z]*/*.py")])
    paths = [path for path in packages if "packages" not in path.parent.name and "test" not in path.parts[-2:]]
    random.Random(seed).shuffle(paths)
    found: list[str] = []
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="strict")[:_LONGEST] if len(found) < count else ""
        if len(text) >= _SHORTEST:
            found.append(text)
    return found


def texts_of(path: str) -> list[str]:
    """The texts of a file of rows `{"text"}`.

    Raises:
        ValueError: a row without text; names it.
    """
    found = []
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        row = json.loads(line) if line.strip() else {"text": ""}
        if not isinstance(row.get("text"), str):
            raise ValueError(f'{path}:{number}: expected {{"text": "…"}}, got {line[:80]!r}')
        found += [row["text"]] if row["text"].strip() else []
    return found


def write_texts(out: Path, new: Sequence[str], old: Sequence[str], held_out: int, held_out_characters: int) -> None:
    """Writes `domain.jsonl` and `general.jsonl`, and the held-out texts of both.

    Args:
        out: directory.
        new: texts of the new domain; the first `held_out` are held out.
        old: the same of the old one.
        held_out: texts of each that are held out.
        held_out_characters: of a held-out text, its beginning, so that each is a document that is measured whole.

    Raises:
        ValueError: there are too few texts.
    """
    measured = []
    for source, texts in ((NEW, new), (OLD, old)):
        if len(texts) < held_out + 1:
            raise ValueError(f"{source}: {len(texts)} texts, expected more than the {held_out} that are held out")
        write_whole(out / f"{source}.jsonl", _lines(source, texts[held_out:]))
        measured.append(_lines(source, [text[:held_out_characters] for text in texts[:held_out]]))
    write_whole(out / HELD_OUT_FILE, "".join(measured))


def _lines(source: str, texts: Sequence[str]) -> str:
    return "".join(json.dumps({"text": text, "source": source}) + "\n" for text in texts)
