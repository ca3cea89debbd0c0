"""Tokenized examples on disk: written piece by piece, read as memory-mapped arrays.

Used by cache.py. A store is a directory of flat little-endian arrays, one file a column, and `examples.json` with the
number of values and the checksum of each. That file is written last, so a directory without it is no store; and every
file is checked when the store is opened, so no damage goes unnoticed.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import mmap
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sft_jax.data.tokenized import Counts, DroppedRows, ExampleDigest, Tokenized, TokenizedExamples, dropped_tokens
from sft_jax.data.tokenized.columns import Labels, TextColumn
from sft_jax.data.tokenized.record_keys import KEYS, RecordKeys
from sft_jax.data.views import NO_TEMPLATE, PromptTemplate

FORMAT = 4
ABOUT = "examples.json"
_BUFFER = 1 << 20
_PIECE = 1 << 24  # bytes read at a time where a whole file is
_KEYS = {name: f"{name}.keys" for name in KEYS}  # files of record keys


class ExampleStoreError(ValueError):
    """A directory that is not a whole store of examples. The message says what is wrong with it."""


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """An error of the disk, as one of the store."""
    try:
        yield
    except OSError as error:
        raise ExampleStoreError(
            f"{path} cannot be written ({error.strerror}). Tokenized examples need room on a local disk: free some, or "
            "give another directory, --config.data.cache=DIR."
        ) from error


class _Column:
    """A file that grows by arrays, with its checksum."""

    def __init__(self, path: Path, dtype: str):
        self.path, self.dtype, self.count, self.checksum = path, np.dtype(dtype), 0, 0
        self._file: BinaryIO = path.open("wb", buffering=_BUFFER)

    def append(self, values: np.ndarray) -> None:
        data = np.ascontiguousarray(values, self.dtype).view(np.uint8).data
        with _named(self.path):
            self._file.write(data)
        self.checksum = zlib.crc32(data, self.checksum)
        self.count += len(values)

    def close(self) -> dict[str, Any]:
        """Ends the file; returns its entry in `examples.json`."""
        with _named(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
        self.abandon()
        return {"dtype": self.dtype.str, "count": self.count, "crc32": self.checksum}

    def abandon(self) -> None:
        """Lets go of the file, whatever became of it."""
        with contextlib.suppress(OSError):  # a disk that is full was reported when it was written to
            self._file.close()


class _TextColumns:
    """A text column as two files: the text, and where each string ends in it."""

    def __init__(self, directory: Path, name: str):
        self.data = _Column(directory / f"{name}.text", "|u1")
        self.ends = _Column(directory / f"{name}.ends", "<i8")

    def __len__(self) -> int:
        return self.ends.count

    def append(self, texts: Sequence[str]) -> None:
        column = TextColumn.of(texts)
        self.ends.append(column.ends + self.data.count)
        self.data.append(column.data)


class _LabelColumn:
    """Codes in a file; the few names they stand for are written to `examples.json`."""

    def __init__(self, directory: Path, name: str):
        self.codes = _Column(directory / name, "<i4")
        self.numbers: dict[str, int] = {}

    def append(self, labels: Labels) -> None:
        table = np.array([self.numbers.setdefault(name, len(self.numbers)) for name in labels.names], np.int32)
        self.codes.append(table[labels.codes])


class ExampleStoreWriter:
    """Writes a store into an empty directory; a context manager, which closes the files."""

    def __init__(self, directory: Path):
        """Opens the files."""
        self._directory = directory
        columns = {"tokens": "<i4", "weights": "|u1", "offsets": "<i8", "first_examples": "<i8"}
        columns |= {"lengths": "<i4", "supervised": "<i4", "dropped_tokens": "<i4"}
        columns |= dict.fromkeys(_KEYS.values(), "<u8")
        self._columns = {name: _Column(directory / name, dtype) for name, dtype in columns.items()}
        self._columns["offsets"].append(np.zeros(1, np.int64))
        self._texts = {name: _TextColumns(directory, name) for name in ("ids", "dropped_ids", "dropped_details")}
        self._labels = {name: _LabelColumn(directory, name) for name in ("groups", "sources", "dropped_reasons")}
        self._digest = ExampleDigest()
        self._changed: collections.Counter[str] = collections.Counter()
        self._template = NO_TEMPLATE
        self.counts = Counts()

    def __enter__(self) -> "ExampleStoreWriter":
        return self

    def __exit__(self, *error: object) -> None:
        for column in self._all():
            column.abandon()

    def append(self, part: Tokenized) -> None:
        """Adds examples, and the rows that were dropped between them."""
        examples, dropped = part.examples, part.dropped
        self._append_keys(part)
        self._append_weights(examples.weights)
        self._append_some("branches", "|u1", examples.branches, self.tokens, len(examples.tokens))
        self._append_some("margins", "<f4", examples.margins, self.counts.examples, len(examples))
        self._columns["offsets"].append(examples.offsets[1:] + self._columns["tokens"].count)
        self._columns["tokens"].append(examples.tokens)
        self._columns["lengths"].append(examples.lengths)
        self._columns["supervised"].append(examples.supervised)
        self._texts["ids"].append(examples.ids)
        self._labels["groups"].append(examples.groups)
        self._labels["sources"].append(examples.sources)
        self._texts["dropped_ids"].append([row.id for row in dropped])
        self._texts["dropped_details"].append([row.detail for row in dropped])
        self._columns["dropped_tokens"].append(dropped_tokens(dropped))
        self._labels["dropped_reasons"].append(Labels.of([row.reason for row in dropped]))
        self._digest.add(examples)
        self.counts += part.counts
        self._changed.update(part.changed)

    @property
    def tokens(self) -> int:
        """Tokens so far."""
        return self._columns["tokens"].count

    def check(self, records: int) -> None:
        """Checks that all records that were read are accounted for, see `Counts.check`."""
        self.counts.check(records, self._columns["offsets"].count - 1)

    def _append_keys(self, part: Tokenized) -> None:
        """Adds the keys of records; the numbers of their first examples go on from those of earlier parts."""
        before = np.where(part.first_examples >= 0, self.counts.examples, -len(self._texts["dropped_ids"]))
        self._columns["first_examples"].append(part.first_examples + before)
        for name, file in _KEYS.items():
            self._columns[file].append(getattr(part.keys, name))
        self._template = part.keys.template

    def _append_weights(self, weights: np.ndarray) -> None:
        """One byte for each weight as long as all are 0 or 1; float32 from the first other weight on."""
        column = self._columns["weights"]
        if column.dtype == np.uint8 and not np.isin(weights, (0, 1)).all():
            self._columns["weights"] = column = _in_float32(column)
        column.append(weights)

    def _append_some(self, name: str, dtype: str, values: np.ndarray | None, before: int, count: int) -> None:
        """A file of numbers from the first example on that has some; a store without any has no such file.

        Of what came `before`, and of `count` without any, they are 0.
        """
        if values is not None and name not in self._columns:
            self._columns[name] = _Column(self._directory / name, dtype)
            for start in range(0, before, _PIECE):
                self._columns[name].append(np.zeros(min(_PIECE, before - start), dtype))
        if name in self._columns:
            self._columns[name].append(np.zeros(count, dtype) if values is None else values)

    def finish(self, key: dict[str, Any], notes: Mapping[str, Any]) -> None:
        """Completes the store: everything else is on disk before `examples.json` is.

        Args:
            key: what the examples depend on, for people who open the file.
            notes: returned by `open_examples`, in the types of JSON.
        """
        about = {
            "format": FORMAT,
            "key": key,
            "columns": {column.path.name: column.close() for column in self._all()},
            "names": {name: list(column.numbers) for name, column in self._labels.items()},
            "counts": dataclasses.asdict(self.counts),
            "changed": dict(self._changed),
            "template": list(self._template),
            "notes": dict(notes),
            "fingerprint": self._digest.fingerprint(),
        }
        path = self._directory / ABOUT
        with _named(path), path.open("w", encoding="utf-8") as file:
            json.dump({"sha256": _sha256(about), "content": about}, file)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(self._directory)

    def _all(self) -> list[_Column]:
        texts = [column for text in self._texts.values() for column in (text.data, text.ends)]
        return [*self._columns.values(), *texts, *(label.codes for label in self._labels.values())]


class ExampleTally:
    """Counts the examples of a store that another process writes."""

    def __init__(self):
        """Of none yet."""
        self.counts, self.tokens = Counts(), 0

    def append(self, part: Tokenized) -> None:
        """Counts examples, and the rows that were dropped between them."""
        self.counts += part.counts
        self.tokens += len(part.examples.tokens)

    def check(self, records: int) -> None:
        """Checks that all records that were read are accounted for, see `Counts.check`."""
        self.counts.check(records, self.counts.examples)


def _in_float32(column: _Column) -> _Column:
    """The same weights, written so far as bytes, as float32."""
    column.close()
    narrow = column.path.with_name("weights.narrow")
    column.path.rename(narrow)
    wide = _Column(column.path, "<f4")
    with narrow.open("rb") as file:
        while piece := file.read(_PIECE):
            wide.append(np.frombuffer(piece, np.uint8))
    narrow.unlink()
    return wide


def open_examples(directory: Path) -> Tokenized:
    """Opens a store after checking all of it.

    Raises:
        ExampleStoreError: it is not a store, or something in it is missing, cut off or changed.
    """
    about = read_about(directory)
    if about["format"] != FORMAT:
        raise ExampleStoreError(f"{directory}: its format is {about['format']!r}, expected {FORMAT}")
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:  # checksums run outside Python's lock
        opened = pool.map(lambda item: _open_column(directory / item[0], item[1]), about["columns"].items())
        columns = dict(zip(about["columns"], opened, strict=True))
    return _assembled(columns, about)


def _assembled(columns: dict[str, np.ndarray], about: dict[str, Any]) -> Tokenized:
    texts = {
        name: TextColumn(columns[f"{name}.text"], columns[f"{name}.ends"])
        for name in ("ids", "dropped_ids", "dropped_details")
    }
    labels = {name: Labels(columns[name], tuple(names)) for name, names in about["names"].items()}
    examples = TokenizedExamples(
        tokens=columns["tokens"],
        weights=columns["weights"],
        offsets=columns["offsets"],
        ids=texts["ids"],
        groups=labels["groups"],
        sources=labels["sources"],
        branches=columns.get("branches"),
        margins=columns.get("margins"),
        stored_lengths=columns["lengths"],
        stored_supervised=columns["supervised"],
        stored_fingerprint=about["fingerprint"],
    )
    dropped = DroppedRows(
        texts["dropped_ids"], labels["dropped_reasons"], texts["dropped_details"], columns["dropped_tokens"]
    )
    keys = RecordKeys(*(columns[file] for file in _KEYS.values()), PromptTemplate(*about["template"]))
    counts = Counts(**about["counts"])
    return Tokenized(examples, dropped, counts, about["changed"], about["notes"], keys, columns["first_examples"])


def read_about(directory: Path) -> dict[str, Any]:
    """The content of `examples.json`.

    Raises:
        ExampleStoreError: there is none, or it was changed.
    """
    try:
        found = json.loads((directory / ABOUT).read_bytes())
        about, checksum = found["content"], found["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExampleStoreError(f"{directory / ABOUT} cannot be read ({type(error).__name__}: {error})") from error
    if _sha256(about) != checksum:
        raise ExampleStoreError(f"{directory / ABOUT} was changed: its checksum differs")
    return about


def _open_column(path: Path, says: dict[str, Any]) -> np.ndarray:
    """Maps one file after comparing its size and checksum with `examples.json`."""
    dtype = np.dtype(says["dtype"])
    expected = says["count"] * dtype.itemsize
    try:
        size = path.stat().st_size
        if size != expected:
            raise ExampleStoreError(f"{path} has {size} bytes, expected {expected}")
        if not size:
            return np.zeros(0, dtype)
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ExampleStoreError(f"{path} cannot be read: {error}") from error
    checksum, view = 0, memoryview(data)
    for start in range(0, size, _PIECE):
        checksum = zlib.crc32(view[start : start + _PIECE], checksum)
    if checksum != says["crc32"]:
        raise ExampleStoreError(f"{path} was changed: its checksum differs")
    return np.frombuffer(data, dtype)


def sync_directory(directory: Path) -> None:
    """Makes the names in a directory survive a power cut."""
    number = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
