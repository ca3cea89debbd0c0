"""The container of a GGUF file: metadata and where each tensor lies.

Used by `gguf` (weights) and `gguf_tokenizer`. The layout is that of
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little endian. The `gguf` library
dequantizes; its reader is not used because it builds an array for each of the 100,000 strings of a vocabulary (2 s
instead of 0.2 s) and reads past the end of a truncated file without saying so.
"""

import dataclasses
import functools
import math
import reprlib
import struct
from collections.abc import Callable
from typing import BinaryIO

import gguf
import numpy as np
from etils import epath

from sft_jax.sources.tensors import (
    MAX_HEADER_BYTES,
    SourceError,
    TensorEntry,
    check_apart,
    check_shape,
    file_size,
    is_whole,
    opened,
    read_rows,
)

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 4  # the format's own limit
_MAX_ITEMS = 2**22  # of all arrays together: the largest vocabularies have 2**18 tokens, types and scores
_MAX_NESTING = 4  # arrays of arrays; none are known to be in use
_PLAIN = {gguf.GGMLQuantizationType.F32: np.float32, gguf.GGMLQuantizationType.F16: np.float16}


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """A tensor as the file describes it: `shape` in NumPy's order (the file's is reversed), `offset` in bytes."""

    name: str
    shape: tuple[int, ...]
    type: gguf.GGMLQuantizationType
    offset: int
    num_bytes: int


def _list_of(kind: type) -> Callable[[object], bool]:
    """Lists have hundreds of thousands of entries, so that nothing of Python's may be called for each."""
    return lambda value: isinstance(value, list) and set(map(type, value)) <= {kind}


_whole_numbers = _list_of(int)

_EXPECTED: dict[str, Callable[[object], bool]] = {
    "a string": lambda value: isinstance(value, str),
    "true or false": lambda value: isinstance(value, bool),
    "a whole number": is_whole,
    "a list of strings": _list_of(str),
    "a list of whole numbers": lambda value: _whole_numbers(value) and all(map(is_whole, {*value})),
    "a list of numbers": _list_of(float),
}


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """`metadata` maps keys to numbers, strings, booleans and lists of these; `tensors` maps GGUF names."""

    path: epath.Path
    metadata: dict[str, object]
    tensors: dict[str, GgufTensor]

    def checked(self, key: str, expected: str, default: object = None) -> object:
        """The value of a metadata key, or the default where the file lacks it.

        Args:
          key: a metadata key.
          expected: what it must be, a key of `_EXPECTED`.
          default: what an absent key means.

        Raises:
          SourceError: it is something else.
        """
        value = self.metadata.get(key, default)
        if key in self.metadata and not _EXPECTED[expected](value):
            raise SourceError(f"{self.path}: {key} is {reprlib.repr(value)}; expected {expected}.")
        return value

    def require(self, key: str) -> object:
        """The value of a metadata key. Raises SourceError if the file lacks it."""
        if key not in self.metadata:
            raise SourceError(f"{self.path}: has no metadata {key!r}. Use a GGUF file made by a current llama.cpp.")
        return self.metadata[key]


class _Cursor:
    """Reads forward through the header and says so when the file ends in the middle of it."""

    def __init__(self, file: BinaryIO, path: epath.Path, size: int):
        self.file, self.path, self.position, self.items = file, path, 0, 0
        self.end = min(size, MAX_HEADER_BYTES)
        self.size = size

    def take(self, num_bytes: int) -> bytes:
        content = self.file.read(num_bytes) if self.position + num_bytes <= self.end else b""
        if len(content) != num_bytes:
            raise self.truncated()
        self.position += num_bytes
        return content

    def truncated(self) -> SourceError:
        return self.damaged(f"the header is truncated or damaged (after byte {self.position} of {self.size}).")

    def damaged(self, how: str) -> SourceError:
        return SourceError(f"{self.path}: {how} Copy or download the file again.")

    def numbers(self, code: str, count: int) -> tuple:
        content = self.take(count * struct.calcsize(code))
        if code == "?" and content.strip(b"\0\1"):
            raise self.damaged(f"a truth value before byte {self.position} is neither 0 nor 1.")
        return struct.unpack(f"<{count}{code}", content)

    def number(self, code: str) -> int | float:
        return self.numbers(code, 1)[0]

    def strings(self, count: int) -> list[str]:
        """`count` strings. One flat loop, because a vocabulary and its merges have some 100,000."""
        read, values, num_bytes = self.file.read, [], 0
        for _ in range(count):
            prefix = read(8)
            length = int.from_bytes(prefix, "little")
            num_bytes += 8 + length
            content = read(length) if self.position + num_bytes <= self.end else b""
            if len(prefix) != 8 or len(content) != length:
                raise self.truncated()
            values.append(content)
        self.position += num_bytes
        try:
            return [content.decode("utf-8") for content in values]
        except UnicodeDecodeError as error:
            raise SourceError(f"{self.path}: a string of the header is not UTF-8 ({error}).") from error

    def string(self) -> str:
        return self.strings(1)[0]

    def value(self, type_id: int, depth: int = 0) -> object:
        if type_id in _SCALARS:
            return self.number(_SCALARS[type_id])
        if type_id == _STRING:
            return self.string()
        if type_id != _ARRAY:
            raise SourceError(f"{self.path}: unknown metadata type {type_id} at byte {self.position}: damaged file.")
        if depth == _MAX_NESTING:
            raise self.damaged(f"arrays are nested more than {_MAX_NESTING} deep at byte {self.position}.")
        item_type, count = self.number("I"), self.number("Q")
        self.items += count
        if self.items > _MAX_ITEMS:
            raise self.damaged(f"the arrays before byte {self.position} have more than {_MAX_ITEMS} items.")
        if item_type in _SCALARS:
            return list(self.numbers(_SCALARS[item_type], count))
        if item_type == _STRING:
            return self.strings(count)
        return [self.value(item_type, depth + 1) for _ in range(count)]


def read_gguf(path: epath.Path) -> GgufFile:
    """Metadata and tensor descriptions of a GGUF file; no tensor data.

    Raises:
      SourceError: not a GGUF file, another version, truncated or damaged.
    """
    size = file_size(path)
    with opened(path) as file:
        cursor = _Cursor(file, path, size)
        num_tensors, num_keys = _read_preamble(cursor)
        metadata = {}
        for _ in range(num_keys):
            key = cursor.string()
            if key in metadata:
                raise cursor.damaged(f"has the metadata {key!r} twice.")
            metadata[key] = cursor.value(cursor.number("I"))
        described = [_read_description(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not is_whole(alignment, 1) or alignment & (alignment - 1):
        raise cursor.damaged(f"general.alignment is {reprlib.repr(alignment)}; expected a power of two.")
    data_start = -(-cursor.position // alignment) * alignment
    tensors = {}
    for name, shape, type_id, offset in described:
        if name in tensors:
            raise SourceError(f"{path}: names the tensor {name!r} twice: damaged file.")
        if offset % alignment:
            raise cursor.damaged(f"{name!r} lies at {offset}, which is no multiple of the alignment {alignment}.")
        tensors[name] = _tensor(path, size, name, shape, type_id, data_start + offset)
    spans = [(tensor.offset, tensor.offset + tensor.num_bytes, name) for name, tensor in tensors.items()]
    check_apart(path, spans, gapless=False)
    return GgufFile(path, metadata, tensors)


def _read_preamble(cursor: _Cursor) -> tuple[int, int]:
    """(number of tensors, number of metadata keys)."""
    if cursor.take(4) != b"GGUF":
        raise SourceError(f"{cursor.path}: is not a GGUF file (it does not begin with the letters GGUF).")
    version = cursor.number("I")
    if version not in (2, 3):
        raise SourceError(
            f"{cursor.path}: has GGUF version {version}; little-endian files of version 2 and 3 are supported. "
            "Convert it with a current llama.cpp."
        )
    return cursor.number("Q"), cursor.number("Q")


def _read_description(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """(name, shape in NumPy's order, type, offset from the start of the data)."""
    name = cursor.string()
    num_dimensions = cursor.number("I")
    if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
        raise cursor.damaged(f"{name!r} has {num_dimensions} dimensions; expected 1 to {_MAX_DIMENSIONS}.")
    dimensions = cursor.numbers("Q", num_dimensions)
    return name, tuple(reversed(dimensions)), cursor.number("I"), cursor.number("Q")


def _tensor(path: epath.Path, size: int, name: str, shape: tuple[int, ...], type_id: int, offset: int) -> GgufTensor:
    try:
        kind = gguf.GGMLQuantizationType(type_id)
    except ValueError as error:
        raise SourceError(
            f"{path}: {name!r} has the tensor type {type_id}, which the gguf library does not know. Upgrade gguf."
        ) from error
    check_shape(path, name, shape)
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    if 0 in shape or shape[-1] % block_size:
        raise SourceError(
            f"{path}: {name!r} of shape {shape} does not fit its type {kind.name} (blocks of {block_size})."
        )
    num_bytes = math.prod(shape) // block_size * block_bytes
    if offset + num_bytes > size:
        raise SourceError(
            f"{path}: the file is truncated: it has {size} bytes and {name!r} would end at {offset + num_bytes}. "
            "Copy or download it again."
        )
    return GgufTensor(name, shape, kind, offset, num_bytes)


def tensor_entry(path: epath.Path, tensor: GgufTensor) -> TensorEntry:
    """An entry of the dequantized tensor, float32; reading it raises SourceError if the type has no dequantizer."""
    return TensorEntry(tensor.shape, np.dtype(np.float32), functools.partial(_dequantize, path, tensor))


def _dequantize(path: epath.Path, tensor: GgufTensor, start: int, stop: int) -> np.ndarray:
    if tensor.type not in _PLAIN and len(tensor.shape) == 1:  # blocks lie along the last axis, here the only one
        as_row = dataclasses.replace(tensor, shape=(1, *tensor.shape))
        return _dequantize(path, as_row, 0, 1)[0, start:stop]
    content = read_rows(path, tensor.offset, tensor.num_bytes, tensor.shape, start, stop)
    shape = (stop - start, *tensor.shape[1:])
    if tensor.type in _PLAIN:
        return content.view(_PLAIN[tensor.type]).reshape(shape).astype(np.float32, copy=False)
    rows = content.reshape(*shape[:-1], -1)
    try:
        return gguf.dequantize(rows, tensor.type).reshape(shape)
    except NotImplementedError as error:
        raise SourceError(
            f"{path}: {tensor.name!r} has the type {tensor.type.name}, which the gguf library cannot dequantize. "
            "Use a file with another quantization, or the original weights."
        ) from error
