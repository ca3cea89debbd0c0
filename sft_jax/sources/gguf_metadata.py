"""The metadata of the model in a GGUF file: keys without the architecture's prefix, and values checked and converted.

`gguf_file` reads the container; `gguf_architectures` and `gguf_rope` make a config of these values.
"""

import math
import reprlib

import numpy as np

from sft_jax.sources.gguf_file import GgufFile
from sft_jax.sources.tensors import SourceError, is_whole

_LARGEST = 2**30


class ModelMetadata:
    """The keys below `general.architecture`: `attention.head_count` stands for `llama.attention.head_count`."""

    def __init__(self, file: GgufFile):
        file.require("general.architecture")
        self.file, self.architecture = file, file.checked("general.architecture", "a string")

    def name(self, key: str) -> str:
        """How the file spells a key."""
        return f"{self.architecture}.{key}"

    def get(self, key: str, default: object = None) -> object:
        """The value of a key, or the default where the file lacks it."""
        return self.file.metadata.get(self.name(key), default)

    def keys(self) -> list[str]:
        """All keys of the model that the file has."""
        return [key.removeprefix(self.name("")) for key in self.file.metadata if key.startswith(self.name(""))]

    def integer(self, key: str, default: int | None = None, smallest: int = 1) -> int:
        """A size, the same for all layers. Raises SourceError if it is none, or is absent and has no default."""
        value = self.file.require(self.name(key)) if default is None else self.get(key, default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if not is_whole(value, smallest, _LARGEST):
            raise SourceError(
                f"{self.file.path}: {self.name(key)} is {reprlib.repr(value)}; expected one whole number from "
                f"{smallest} to {_LARGEST} for all layers."
            )
        return value

    def integers(self, key: str, count: int, default: int | None = None) -> list[int]:
        """A size of each of `count` layers, which the file has as a list or as one number. Raises as `integer`."""
        value = self.get(key)
        if not isinstance(value, list):
            return [self.integer(key, default)] * count
        if len(value) != count or not all(is_whole(one, 1, _LARGEST) for one in value):
            raise SourceError(
                f"{self.file.path}: {self.name(key)} is {reprlib.repr(value)}; expected a whole number from 1 to "
                f"{_LARGEST} for each of {count} layers."
            )
        return value

    def truth(self, key: str, default: bool) -> bool:
        """True or false. Raises SourceError if it is neither."""
        return self.file.checked(self.name(key), "true or false", default)

    def real(self, key: str, default: float | None = None) -> float:
        """A float32 as the number that was meant: 9.99999974e-06 -> 1e-05. Raises SourceError as `integer` does."""
        value = self.file.require(self.name(key)) if default is None else self.get(key, default)
        if not isinstance(value, float) or not math.isfinite(value):
            raise SourceError(f"{self.file.path}: {self.name(key)} is {reprlib.repr(value)}; expected a number.")
        return float(str(np.float32(value)))
