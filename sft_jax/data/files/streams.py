"""Opening files, on disk or in a bucket, and decompressing them on the way."""

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from etils import epath

from sft_jax.data.reading import RecordError


class Compression(NamedTuple):
    """One way to compress: its name, what such files begin with, and how they are opened."""

    title: str
    magic: bytes
    open: Callable[[BinaryIO], BinaryIO]


def _open_zstd(stream: BinaryIO) -> BinaryIO:
    import pyarrow  # slow to import, and rarely needed

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, mode="r"), "zstd"))


COMPRESSIONS = {
    ".gz": Compression("gzip", b"\x1f\x8b", gzip.open),
    ".bz2": Compression("bzip2", b"BZh", bz2.open),
    ".xz": Compression("xz", b"\xfd7zXZ\x00", lzma.open),
    ".zst": Compression("zstd", b"\x28\xb5\x2f\xfd", _open_zstd),
}

_BROKEN = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, OSError)


@contextlib.contextmanager
def opened(path: epath.Path) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed if its first bytes say that it is compressed.

    Raises:
        RecordError: the suffix says that it is compressed and it is not, or it ends too early.
    """
    with path.open("rb") as raw:
        head = raw.read(8)
        raw.seek(0)
        expected = COMPRESSIONS.get(path.suffix)
        if expected and head and not head.startswith(expected.magic):
            raise RecordError(
                f"{path}: the suffix says {expected.title}, but the content is not. Fetch the file again."
            )
        compression = next((c for c in COMPRESSIONS.values() if head.startswith(c.magic)), None)
        if compression is None:
            yield raw
            return
        try:
            with compression.open(raw) as stream:
                yield stream
        except _BROKEN as error:
            raise RecordError(
                f"{path}: the {compression.title} file is cut off or damaged ({error}). Fetch it again."
            ) from error
