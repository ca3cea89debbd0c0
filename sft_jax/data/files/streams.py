"""Opens files, on disk or in a bucket, and decompresses them while they are read."""

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from etils import epath

from sft_jax.data.files.rows import Share
from sft_jax.data.reading import RecordError

_PIECE = 2**17  # bytes read at a time


class Compression(NamedTuple):
    """One way to compress: its name, what such files begin with, and how they are opened."""

    title: str
    magic: bytes
    open: Callable[[BinaryIO], BinaryIO]


def _open_zstd(stream: BinaryIO) -> BinaryIO:
    import pyarrow  # slow to import, and rarely needed

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, mode="r"), "zstd"))


class _Streams(io.RawIOBase):
    """Compressed streams one after the other, decompressed; zeros may stand between them, and nothing else.

    Parallel compressors write many streams to a file. The modules `bz2` and `lzma` take damage at the beginning of one
    for the end of the file.
    """

    def __init__(self, raw: BinaryIO, decompressor: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor]):
        self._raw, self._decompressor = raw, decompressor
        self._current: bz2.BZ2Decompressor | lzma.LZMADecompressor | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        found = self._more(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def _more(self, most: int) -> bytes:
        """Some bytes; none at the end of the file."""
        while True:
            if self._current is None or self._current.eof:
                compressed = self._beginning()
                if not compressed:
                    return b""
                self._current = self._decompressor()
            else:
                compressed = self._raw.read(_PIECE) if self._current.needs_input else b""
                if self._current.needs_input and not compressed:
                    raise EOFError("it ends within a stream")
            if found := self._current.decompress(compressed, most):
                return found

    def _beginning(self) -> bytes:
        """The beginning of the next stream; nothing at the end of the file."""
        found = b"" if self._current is None else self._current.unused_data.lstrip(b"\0")
        while not found and (piece := self._raw.read(_PIECE)):
            found = piece.lstrip(b"\0")
        return found


def _streams(decompressor: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor]) -> Callable[[BinaryIO], BinaryIO]:
    return lambda raw: io.BufferedReader(_Streams(raw, decompressor), _PIECE)


COMPRESSIONS = {
    ".gz": Compression("gzip", b"\x1f\x8b", gzip.open),
    ".bz2": Compression("bzip2", b"BZh", _streams(bz2.BZ2Decompressor)),
    ".xz": Compression("xz", b"\xfd7zXZ\x00", _streams(lzma.LZMADecompressor)),
    ".zst": Compression("zstd", b"\x28\xb5\x2f\xfd", _open_zstd),
}

_BROKEN = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, OSError)


@contextlib.contextmanager
def opened(path: epath.Path, share: Share | None = None) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed if its first bytes say that it is compressed.

    Args:
        path: of the file.
        share: told how far it is read, in bytes as they lie in the file.

    Raises:
        RecordError: the suffix says that it is compressed and it is not, or it ends too early.
    """
    with path.open("rb") as raw:
        head = raw.read(8)
        raw.seek(0)
        if share is not None:
            share.of_bytes(raw, path.stat().length)
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
