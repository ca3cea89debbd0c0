"""A cheap fingerprint of the files of a checkpoint, recorded with a run to identify the weights it started from."""

import hashlib
from collections.abc import Iterable, Iterator

from etils import epath

_END_BYTES = 1 << 20
_SAMPLE_BYTES = 64 << 10
_NUM_SAMPLES = 64


def fingerprint_files(paths: Iterable[epath.Path]) -> str:
    """Sha256 (hex) over the name, the size and samples of the content of each file, in the order of their names.

    Reading every byte of a large checkpoint takes minutes, so of each file only the first and the last MiB and 64
    evenly spread samples of 64 KiB are read; files of up to 6 MiB are read whole. Another dtype, another training
    step or a truncated file changes it; an edit of a few bytes in the middle of a large file may not.
    """
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        size = path.stat().length
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for start, length in _spans(size):
                file.seek(start)
                digest.update(file.read(length))
    return digest.hexdigest()


def _spans(size: int) -> Iterator[tuple[int, int]]:
    """(start, length) of what is read of a file of `size` bytes."""
    if size <= 2 * _END_BYTES + _NUM_SAMPLES * _SAMPLE_BYTES:
        yield 0, size
        return
    yield 0, _END_BYTES
    last_start = size - _END_BYTES - _SAMPLE_BYTES
    for i in range(_NUM_SAMPLES):
        yield _END_BYTES + (last_start - _END_BYTES) * i // (_NUM_SAMPLES - 1), _SAMPLE_BYTES
    yield size - _END_BYTES, _END_BYTES
