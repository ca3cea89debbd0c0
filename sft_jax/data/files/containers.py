"""Containers: the kinds of files that hold rows, and how one is recognised, by its suffix and then by its content."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

from sft_jax.data.files import arrow, csv_table, json_array, jsonl
from sft_jax.data.files.rows import Row
from sft_jax.data.files.streams import COMPRESSIONS


class Container(NamedTuple):
    """A kind of file.

    Attributes:
        title: its name for people.
        rows: (bytes, path for errors) -> its rows.
        empty: what null is called.
        by_reading: whether `rows` takes a `reading` too.
    """

    title: str
    rows: Callable[..., Iterator[Row]]
    empty: str = "null"
    by_reading: bool = False


CONTAINERS = {
    "jsonl": Container("JSONL", jsonl.rows),
    "json": Container("JSON", json_array.rows, by_reading=True),
    "csv": Container("CSV", csv_table.rows, "empty", True),
    "csv_semicolon": Container("CSV with semicolons", functools.partial(csv_table.rows, separator=";"), "empty", True),
    "tsv": Container("TSV", functools.partial(csv_table.rows, separator="\t"), "empty", True),
    "parquet": Container("Parquet", arrow.parquet_rows),
    "arrow": Container("Arrow", arrow.arrow_rows),
}
DATA_SETS = ("saved", "hub")  # of the `datasets` library, see data_sets.py

_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
_MAGIC = {b"PAR1": "parquet", b"ARROW1": "arrow"}


def container_of(name: str, head: bytes) -> str | None:
    """Name of the container of a file; None if neither suffix nor content tells.

    Args:
        name: of the file; a suffix of compression is looked through.
        head: its first bytes, decompressed.
    """
    for magic, container in _MAGIC.items():
        if head.startswith(magic):
            return container
    path = PurePosixPath(name)
    suffix = PurePosixPath(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix
    found = _SUFFIXES.get(suffix.lower())
    if found not in (None, "json"):
        return found
    return _json_kind(head.removeprefix(jsonl.BOM).lstrip()) or found


def _json_kind(head: bytes) -> str | None:
    """JSONL if a whole object stands on the first line and another follows, JSON if it begins like it."""
    if head.startswith(b"["):
        return "json"
    if not head.startswith(b"{"):
        return None
    line, _, rest = head.partition(b"\n")
    try:
        json.loads(line)
    except ValueError:
        return "json"
    return "jsonl" if rest.lstrip().startswith(b"{") else "json"
