"""Several processes make the examples of a run together: each tokenizes its share, and each cache is written once.

Every process reads and cleans all rows, since cleaning compares rows with one another; chunks of what is left are
tokenized in turns and passed on, so that all have the examples of all, which are those of one process. Of processes
that share a directory of the cache one writes it, and the others map its files.
"""

import contextlib
import json
import pickle
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath

from sft_jax.agreement import agreed, exchanged, gathered
from sft_jax.data.tokenized import Tokenized
from sft_jax.data.tokenized.cache import NewEntry, cached_examples, entry_name, found_entry
from sft_jax.data.tokenized.cache_key import Report, check_unchanged, file_digests, file_ends
from sft_jax.data.tokenized.example_store import ExampleStoreWriter, ExampleTally, open_examples
from sft_jax.data.tokenizing.streaming import Turns

Files = Sequence[tuple[str, epath.Path]]
Write = Callable[[ExampleStoreWriter | ExampleTally], Mapping[str, Any]]


def read_the_same(files: Files) -> bool:
    """Whether there are several processes, and the files of all have the same names, sizes and ends.

    Where they have not, or where rows come from no files, each process tokenizes all, and that their data differ is
    found by the fingerprints.
    """
    if jax.process_count() == 1:
        return False
    with agreed():
        said = json.dumps(file_ends(files))
    return bool(files) and len(set(exchanged(said))) == 1


def digests_together(files: Files, report: Report) -> list[list[str]]:
    """`file_digests` of files that are the same for all processes, each of which reads some of them."""
    with agreed():
        own = file_digests(_own(files), report)
    found = [json.loads(said) for said in exchanged(json.dumps(own))]
    return [found[number % len(found)][number // len(found)] for number in range(len(files))]


def check_unchanged_together(files: Files, digests: Sequence[Sequence[str]]) -> None:
    """`check_unchanged` of files that are the same for all processes, each of which reads some of them."""
    with agreed():
        check_unchanged(_own(files), _own(digests))


def _own(items: Sequence) -> Sequence:
    return items[jax.process_index() :: jax.process_count()]


def turns() -> Turns:
    """Of the processes of this run."""
    return Turns(jax.process_index(), jax.process_count(), _of_all)


def _of_all(own: Iterator[Tokenized]) -> Iterator[Tokenized]:
    """The examples of a chunk of each process, then of the next ones, until nobody has one left.

    Raises:
        OtherProcessError: another one cannot read or tokenize a row; says which.
    """
    while True:
        with agreed():
            part = next(own, None)
        parts = [pickle.loads(content) for content in gathered(pickle.dumps(part, pickle.HIGHEST_PROTOCOL))]
        yield from (part for part in parts if part is not None)
        if parts == [None] * len(parts):
            return


def examples_together(directory: Path | None, key: dict[str, Any], write: Write) -> tuple[Tokenized, str]:
    """As `cached_examples`, by all processes: `write` is called by all of them, or by none.

    Raises:
        ValueError: the directory cannot be written to.
        OtherProcessError: that of another process cannot, or it cannot go on; says why.
    """
    if directory is None:
        return cached_examples(None, key, write)
    with agreed():
        found, note = found_entry(directory, key)
    if all(json.loads(said) for said in exchanged(json.dumps(found is not None))):
        return found, note
    run = exchanged(uuid.uuid4().hex)[0]
    with contextlib.ExitStack() as stack:
        writes = _is_first_there(directory, run) and found is None
        with agreed():
            entry = stack.enter_context(NewEntry(directory, key, run)) if writes else None
        notes = write(entry.writer if entry else ExampleTally())
        with agreed():
            if entry:
                entry.keep(notes)
    with agreed():
        return found or open_examples(directory / entry_name(key)), note


def _is_first_there(directory: Path, run: str) -> bool:
    """Whether no process of a smaller number sees the same directory: it finds the file that this one leaves there."""
    mark = directory / f"{run}-{jax.process_index()}.here"
    with agreed():
        mark.touch()
    with agreed():
        numbers = [int(path.stem.rpartition("-")[2]) for path in directory.glob(f"{run}-*.here")]
    with agreed():
        mark.unlink()
    return min(numbers) == jax.process_index()
