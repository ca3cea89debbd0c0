"""Indexes on a disk: made once, found again under their names, made anew where they are damaged.

Uses index.py. An index is a directory that is named after all it depends on, so that a changed document makes another
one; vectors of chunks that did not change are taken from those that are there. It is written under another name and
renamed when it is complete, and the hashes of its files are compared whenever it is read. Nothing is removed but what
is damaged or was never completed.

    index.json      the embedder, the ids of the chunks in the order of their vectors, hashes of all files
    vectors.npy     float32 [chunks, dim]; for dense and hybrid
    bm25/           as the library bm25s writes it; for bm25 and hybrid
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from sft_jax.data.tokenized.example_store import sync_directory
from sft_jax.retrieval.bm25 import WordIndex
from sft_jax.retrieval.chunks import Chunk
from sft_jax.retrieval.dense import Embedder, Vectors
from sft_jax.retrieval.index import Index, build_index, index_name

_MANIFEST, _VECTORS, _WORDS = "index.json", "vectors.npy", "bm25"
_PARTIAL, _LOCK = ".partial-", ".lock"


class DamagedIndexError(ValueError):
    """A directory that holds no complete index; names the file."""


def open_index(
    root: str | os.PathLike | None, chunks: Sequence[Chunk], method: str, embedder: Embedder | None = None
) -> Index:
    """The index of chunks: read if it is there and whole, else made and kept.

    Processes of one machine that keep indexes in one directory do so one after the other.

    Args:
        root: directory of indexes, on a local disk; None: nothing is kept.
        chunks: with ids of their own.
        method: one of METHODS.
        embedder: for dense and hybrid.

    Raises:
        ValueError: see `build_index`; or the directory lies in a bucket, cannot be written to, or has no locks.
    """
    if root is None:
        return build_index(chunks, method, embedder)
    if "://" in os.fspath(root):
        raise ValueError(f"{root}: indexes are kept on a local disk; give a directory there")
    root, name = Path(root), index_name(chunks, method, embedder)
    with _alone_in(root):
        for partial in root.glob(f"*{_PARTIAL}*"):
            shutil.rmtree(partial)  # of a process that was killed
        if (root / name).exists():
            try:
                return _read(root / name, chunks, embedder)
            except DamagedIndexError as error:
                logging.warning("%s; the index is made again", error)
                _remove(root / name)
        known = {} if embedder is None else _known_vectors(root, {chunk.id for chunk in chunks}, embedder)
        index = build_index(chunks, method, embedder, known)
        _write(root, index)
        return index


def _read(directory: Path, chunks: Sequence[Chunk], embedder: Embedder | None) -> Index:
    """The index in a directory.

    Raises:
        DamagedIndexError: it is not whole.
    """
    manifest = _checked_manifest(directory)
    if manifest["chunks"] != [chunk.id for chunk in chunks]:
        raise DamagedIndexError(f"{directory / _MANIFEST}: holds other chunks than its name says")
    by_words = WordIndex.load(directory / _WORDS) if (directory / _WORDS).exists() else None
    vectors = None if embedder is None else _read_vectors(directory, manifest)
    return Index(directory.name, tuple(chunks), by_words, vectors, embedder)


def _checked_manifest(directory: Path) -> dict[str, Any]:
    """What index.json says, once all files are what it says they are.

    Raises:
        DamagedIndexError: one is not, or there is another file.
    """
    path = directory / _MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DamagedIndexError(f"{path}: {error}") from error
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != _digest_of(manifest):
        raise DamagedIndexError(f"{path}: is not what was written")
    there = _file_digests(directory)
    if there != manifest["files"]:
        names = sorted(
            name for name in there.keys() | manifest["files"] if there.get(name) != manifest["files"].get(name)
        )
        raise DamagedIndexError(f"{directory}: {', '.join(names)} not as written")
    return manifest


def _read_vectors(directory: Path, manifest: dict[str, Any]) -> Vectors:
    vectors = np.load(directory / _VECTORS, allow_pickle=False)
    if len(vectors) != len(manifest["chunks"]):
        raise DamagedIndexError(f"{directory / _VECTORS}: {len(vectors)} vectors of {len(manifest['chunks'])} chunks")
    return vectors


def _known_vectors(root: Path, wanted: Collection[str], embedder: Embedder) -> dict[str, np.ndarray]:
    """Vectors of an embedder that lie in whole indexes below a directory, by the ids of chunks."""
    known: dict[str, np.ndarray] = {}
    for directory in sorted(path for path in root.iterdir() if (path / _VECTORS).exists()):
        try:
            manifest = _checked_manifest(directory)
            if manifest["embedder"] != embedder.name:
                continue
            vectors = _read_vectors(directory, manifest)
        except DamagedIndexError:
            continue  # it is made again when it is asked for
        known |= {name: vector for name, vector in zip(manifest["chunks"], vectors, strict=True) if name in wanted}
    return known


def _write(root: Path, index: Index) -> None:
    """Writes an index, whole or not at all."""
    partial = Path(tempfile.mkdtemp(prefix=index.name + _PARTIAL, dir=root))
    try:
        if index.by_words is not None:
            index.by_words.save(partial / _WORDS)
        if index.vectors is not None:
            np.save(partial / _VECTORS, index.vectors, allow_pickle=False)
        manifest = {
            "embedder": index.embedder and index.embedder.name,
            "chunks": [chunk.id for chunk in index.chunks],
            "files": _file_digests(partial),
        }
        (partial / _MANIFEST).write_text(json.dumps(manifest | {"sha256": _digest_of(manifest)}))
        for path in partial.rglob("*"):
            sync_directory(path)  # files too: all of it is on the disk before it has its name
        partial.rename(root / index.name)
        sync_directory(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # nothing where it was renamed


def _remove(path: Path) -> None:
    """Removes what stands in the place of an index, of whatever kind it is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _file_digests(directory: Path) -> dict[str, str]:
    """sha256 of every file but the manifest, by its name below the directory."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / _MANIFEST)
    return {path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _digest_of(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _alone_in(root: Path) -> Iterator[None]:
    """Alone among the processes of this machine; the system lets go when a process dies."""
    with contextlib.ExitStack() as stack:
        try:
            root.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((root / _LOCK).open("a"))
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise ValueError(
                f"{root}: indexes cannot be kept there ({error}); give a directory on a local disk"
            ) from error
        yield
