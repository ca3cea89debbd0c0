"""Finds the sources that a path of the config names: files, globs, lists, saved data sets, names of the hub."""

import collections
import dataclasses
import difflib
import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence

from etils import epath

from sft_jax.data.files import data_sets
from sft_jax.data.files.containers import CONTAINERS, DATA_SETS, container_of
from sft_jax.data.files.rows import Row, Share, Source
from sft_jax.data.files.streams import opened
from sft_jax.data.reading import AUTO, Reading, RecordError, leave_split

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def sources_of(path: str | os.PathLike, reading: Reading) -> list[Source]:
    """The sources a path stands for, in the order in which they are read.

    A path is a file, a pattern (`data/*.jsonl`, files in alphabetical order), several of them separated by commas, a
    directory saved by the `datasets` library, or "owner/name" of a data set of the hub where there is no such path.

    Raises:
        RecordError: there is nothing, or something that cannot be read as rows.
    """
    text = os.fspath(path)
    if reading.container == "hub" or (reading.container == AUTO and _is_hub_name(text)):
        return [data_sets.hub(text, reading)]
    if reading.container == "saved" or (epath.Path(text).is_dir() and data_sets.is_saved(epath.Path(text))):
        return [data_sets.saved(epath.Path(text), reading)]
    for option in ("subset", "revision", "streaming"):
        if getattr(reading, option):
            raise RecordError(
                f"{text}: --config.data.reading.{option}={getattr(reading, option)!r} is for data sets of the hub; "
                "leave it out for files."
            )
    files = files_of(text)
    names = names_of([str(file) for file in files])
    return [file_source(file, name, reading) for file, name in zip(files, names, strict=True)]


def _is_hub_name(text: str) -> bool:
    """Whether it can only be a name of the hub: nothing lies there, and it does not look like a file."""
    if not _HUB_NAME.fullmatch(text) or epath.Path(text).exists():
        return False
    return container_of(text, b"") is None and not epath.Path(text).parent.is_dir()


def files_of(text: str) -> list[epath.Path]:
    """The files that a path stands for: a file, those of a pattern, or several of them separated by commas.

    Raises:
        RecordError: there are none, or it is a directory.
    """
    path = epath.Path(text)
    if path.is_file():
        return [path]
    if path.is_dir():
        inside = sorted({child.suffix for child in path.iterdir() if child.is_file() and child.suffix})
        example = f" For example {text.rstrip('/')}/*{inside[0]}." if inside else ""
        raise RecordError(f"{text}: is a directory, and not one made by save_to_disk. Expected files.{example}")
    if "," in text:
        return [file for part in text.split(",") if part.strip() for file in files_of(part.strip())]
    if glob.has_magic(text):
        return _matching(text)
    raise RecordError(f"{text}: there is no such file.{_similar(path)}")


def _matching(pattern: str) -> list[epath.Path]:
    parts = pattern.split("/")
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    base = "/".join(parts[:first]) or ("/" if pattern.startswith("/") else ".")
    found = sorted((file for file in epath.Path(base).glob("/".join(parts[first:])) if file.is_file()), key=str)
    if not found:
        raise RecordError(f"{pattern}: no file matches the pattern.{_brackets(pattern)}")
    return found


def _brackets(pattern: str) -> str:
    """What brackets mean, where some stand in the pattern and no file has them in its name."""
    if "[" not in pattern:
        return ""
    plain = pattern.replace("[", "[[]")
    if glob.glob(plain):
        return f" Brackets are part of it: for a name with brackets write {plain}"
    return f" Brackets are part of it: [12] stands for 1 or 2.{_similar(epath.Path(pattern))}"


def _similar(path: epath.Path) -> str:
    if not path.parent.is_dir():
        return f" There is no directory {path.parent} either."
    close = difflib.get_close_matches(path.name, [child.name for child in path.parent.iterdir()], n=3)
    return f" Similar: {', '.join(close)}." if close else ""


def names_of(paths: Sequence[str]) -> list[str]:
    """A name for each file: its base name, or with the folders below the common one where base names are equal."""
    twice = [path for path, count in collections.Counter(paths).items() if count > 1]
    if twice:
        raise RecordError(f"{twice[0]}: is named twice, so its rows would be read twice. Name it once.")
    short = [path.rsplit("/", 1)[-1] for path in paths]
    if len(set(short)) == len(short):
        return short
    parts = [path.split("/") for path in paths]
    shared = next(depth for depth, folders in enumerate(zip(*parts, strict=False)) if len(set(folders)) > 1)
    return ["/".join(path[shared:]) for path in parts]


def named_apart(sources: list[Source], others: Sequence[tuple[str, epath.Path]]) -> list[Source]:
    """The sources, those that have the name of another file with as many of their folders as tell them apart."""
    taken = dict(others)
    return [
        dataclasses.replace(source, name=_own_name(source.files[0], taken))
        if len(source.files) == 1 and taken.get(source.name, source.files[0]) != source.files[0]
        else source
        for source in sources
    ]


def _own_name(path: epath.Path, taken: Mapping[str, epath.Path]) -> str:
    parts = str(path).split("/")
    names = ("/".join(parts[-count:]) for count in range(2, len(parts)))
    return next((name for name in names if name not in taken), str(path))


def file_source(path: epath.Path, name: str, reading: Reading) -> Source:
    """The rows of a file.

    Raises:
        RecordError: it cannot be told what kind of file it is, or it has no splits and one is asked for.
    """
    container = reading.container
    if container == AUTO:
        with opened(path) as stream:
            container = container_of(path.name, stream.read(2**16))
    if container is None:
        raise RecordError(
            f"{path}: neither suffix nor content says what it is. Say so: --config.data.reading.container=, one of "
            f"{', '.join([*CONTAINERS, *DATA_SETS])}."
        )
    kind, share = CONTAINERS[container], Share()
    if reading.split and container != "json":
        raise RecordError(
            f"{path}: the split {reading.split!r} is for data sets of the hub, saved ones and JSON files of several "
            f"arrays, this file is {kind.title}. {leave_split(reading)}"
        )
    options, below = {"reading": reading} if kind.by_reading else {}, f"/{reading.split}" if reading.split else ""

    def rows() -> Iterator[Row]:
        with opened(path, share) as stream:
            yield from share.of_rows(kind.rows(stream, str(path), **options))

    return Source(name + below, str(path) + below, kind.title, rows, (path,), share, kind.empty)
