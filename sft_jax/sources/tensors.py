"""A tensor that is still in its file, and the error every reader of this package raises.

The lowest module of `sources`: the readers of safetensors and GGUF files describe each tensor by a `TensorEntry`,
and the model layer loads them one at a time: nothing is read before it is asked for.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from etils import epath


class SourceError(ValueError):
    """A checkpoint or tokenizer that cannot be read; the message names the file and what to do."""


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """Shape and dtype of a tensor in a file, and how to read it.

    Attributes:
      shape: of the array that `load` returns.
      dtype: of the array that `load` returns (NumPy's, or `ml_dtypes.bfloat16`).
      read: reads (and dequantizes) the tensor from its file.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray] = dataclasses.field(repr=False)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def load(self) -> np.ndarray:
        """A new, writable array of `shape` and `dtype`. Nothing is cached. Raises SourceError."""
        return self.read()


def read_span(path: epath.Path, offset: int, num_bytes: int) -> np.ndarray:
    """`num_bytes` bytes of a file (local or in a bucket) from `offset`, uint8. Raises SourceError if it ends early."""
    content = np.empty(num_bytes, np.uint8)  # read into, so that a large tensor is in memory once
    with path.open("rb") as file:
        file.seek(offset)
        found = file.readinto(memoryview(content))
    if found != num_bytes:
        raise SourceError(
            f"{path}: the file ends early ({offset + found} bytes, expected at least {offset + num_bytes}). "
            "It is incomplete: copy or download it again."
        )
    return content
