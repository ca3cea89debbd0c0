"""A tensor that is still in its file, and the error that every reader of this package raises.

The readers of safetensors and GGUF files describe each tensor by a `TensorEntry`; the model layer reads them one at a
time, each host some of the rows, and nothing is read before that.

A header may be wrong or malicious: the sizes it states are compared with that of the file before memory is allocated.
"""

import contextlib
import dataclasses
import math
import reprlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
from etils import epath

MAX_HEADER_BYTES = 100_000_000  # of a file's description of itself; the limit of the safetensors library
_MAX_DIMENSIONS, _MAX_ELEMENTS = 8, 2**48


class SourceError(ValueError):
    """A checkpoint or tokenizer that cannot be read; the message names the file and what to do."""


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """Shape and dtype of a tensor in a file, and how to read it.

    Attributes:
      shape: of the array that `load` returns.
      dtype: of the array that `load` returns (NumPy's, or `ml_dtypes.bfloat16`).
      read: reads (and dequantizes) the rows from the first number to before the second from its file, and nothing
        else; rows lie along the first axis, and a scalar is one row.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[int, int], np.ndarray] = dataclasses.field(repr=False)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """Size of the first axis; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    def load(self) -> np.ndarray:
        """A new, writable array of `shape` and `dtype`. Nothing is cached. Raises SourceError."""
        return self.read(0, self.rows)


def is_whole(value: object, smallest: int = 0, largest: int = 2**63 - 1) -> bool:
    """A whole number in these bounds; True and False are none, although Python counts them as 1 and 0."""
    return isinstance(value, int) and not isinstance(value, bool) and smallest <= value <= largest


def check_shape(path: epath.Path, name: str, shape: tuple[int, ...]) -> None:
    """Refuses shapes that no tensor has, so that products of sizes stay numbers. Raises SourceError.

    Empty dimensions are left out of the product: (0, 2**60) has no elements, and is refused all the same.
    """
    if len(shape) > _MAX_DIMENSIONS or math.prod(size or 1 for size in shape) > _MAX_ELEMENTS:
        raise SourceError(
            f"{path}: {name!r} would have the shape {reprlib.repr(shape)}; at most {_MAX_DIMENSIONS} dimensions and "
            f"{_MAX_ELEMENTS} elements are read. The file is damaged: copy or download it again."
        )


def check_apart(path: epath.Path, spans: list[tuple[int, int, str]], *, gapless: bool) -> None:
    """Checks that tensors do not overlap in their file. Raises SourceError.

    Args:
      path: the file.
      spans: (begin, end, name) of each tensor.
      gapless: the format knows no unused bytes between two tensors, nor before the first.
    """
    end_before, name_before = 0, "the header"
    for begin, end, name in sorted(spans):
        if begin < end_before or (gapless and begin > end_before):
            kind = "overlaps with" if begin < end_before else "leaves unused bytes after"
            raise SourceError(f"{path}: {name!r} {kind} {name_before}: damaged file. Copy or download it again.")
        end_before, name_before = end, repr(name)


@contextlib.contextmanager
def opened(path: epath.Path) -> Iterator[BinaryIO]:
    """The file, open for reading (local or in a bucket). Raises SourceError where the system refuses."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error}).") from error


def file_size(path: epath.Path) -> int:
    """Bytes in a file. Raises SourceError if it is a directory or cannot be looked at."""
    try:
        stat = path.stat()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if stat.is_directory:
        raise SourceError(f"{path}: is a directory; expected a file.")
    return stat.length


def read_rows(
    path: epath.Path, offset: int, num_bytes: int, shape: tuple[int, ...], start: int, stop: int
) -> np.ndarray:
    """Some rows of a tensor as they are stored, uint8, one after the other. Raises SourceError if the file ends early.

    Args:
      path: the file.
      offset: where in it the tensor begins, in bytes.
      num_bytes: of the whole tensor.
      shape: of the whole tensor.
      start: number of the first row.
      stop: number of the row after the last.
    """
    row_bytes = num_bytes // max(1, shape[0]) if shape else num_bytes
    return read_span(path, offset + start * row_bytes, (stop - start) * row_bytes)


def read_span(path: epath.Path, offset: int, num_bytes: int) -> np.ndarray:
    """`num_bytes` bytes of a file (local or in a bucket) from `offset`, uint8. Raises SourceError if it ends early."""
    content = np.empty(num_bytes, np.uint8)  # read into, so that a large tensor is in memory once
    with opened(path) as file:
        file.seek(offset)
        found = file.readinto(memoryview(content))
    if found != num_bytes:
        raise SourceError(
            f"{path}: the file ends early ({offset + found} bytes, expected at least {offset + num_bytes}). "
            "It is incomplete: copy or download it again."
        )
    return content
