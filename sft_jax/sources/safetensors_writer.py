"""Writes safetensors files tensor by tensor, so that the host holds only one at a time.

A file is eight bytes of length, a JSON header with the place of each tensor, and the raw data (see
https://huggingface.co/docs/safetensors). Shapes and dtypes are known before the first tensor is computed, so the header
is written first, and the file in one pass.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping

import numpy as np
from etils import epath

from sft_jax.sources.huggingface import DTYPES

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_METADATA = {"format": "pt"}  # transformers refuses files that do not say which framework's layout they have
_ALIGNMENT = 8  # of the data, as the safetensors library has it


@dataclasses.dataclass(frozen=True)
class PendingTensor:
    """A tensor to be written.

    Attributes:
        shape: of the array.
        dtype: one that is read too.
        make: makes the array; called once, when its turn comes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def num_bytes(self) -> int:
        """Bytes it takes in a file."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def write_safetensors(
    path: epath.Path, tensors: Mapping[str, PendingTensor], progress: Callable[[int], None] = lambda num_bytes: None
) -> None:
    """Writes a file (local or in a bucket).

    Args:
        path: the file; one that is there is replaced.
        tensors: by name. They are made and written in their order, those of large elements first, so that each begins
            at a multiple of the size of its elements, as torch wants it.
        progress: told the bytes of each tensor after it is written.

    Raises:
        ValueError: a tensor is made of another shape or dtype than it was announced with.
    """
    tensors = dict(sorted(tensors.items(), key=lambda item: -np.dtype(item[1].dtype).itemsize))
    with path.open("wb") as file:
        file.write(_header(tensors))
        for name, pending in tensors.items():
            array = pending.make()
            if array.shape != pending.shape or array.dtype != pending.dtype:
                raise ValueError(
                    f"{path}: {name} became {array.dtype}{list(array.shape)}; announced was "
                    f"{np.dtype(pending.dtype)}{list(pending.shape)}"
                )
            file.write(memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8)))
            del array  # before the next one is made
            progress(pending.num_bytes)


def split_into_shards(tensors: Mapping[str, PendingTensor], max_bytes: int) -> dict[str, dict[str, PendingTensor]]:
    """File name -> its tensors: `model.safetensors`, or `model-00001-of-00002.safetensors` and so on.

    Args:
        tensors: by name; their order is kept.
        max_bytes: of tensors in a file; one that is larger by itself gets a file of its own.
    """
    shards: list[dict[str, PendingTensor]] = [{}]
    filled = 0
    for name, pending in tensors.items():
        if shards[-1] and filled + pending.num_bytes > max_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = pending
        filled += pending.num_bytes
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, start=1)}


def index_of(shards: Mapping[str, Mapping[str, PendingTensor]]) -> dict:
    """What `model.safetensors.index.json` says of several files."""
    total = sum(pending.num_bytes for shard in shards.values() for pending in shard.values())
    weight_map = {name: file for file, shard in shards.items() for name in shard}
    return {"metadata": {"total_size": total}, "weight_map": weight_map}


def _header(tensors: Mapping[str, PendingTensor]) -> bytes:
    entries, begin = {"__metadata__": _METADATA}, 0
    for name, pending in tensors.items():
        end = begin + pending.num_bytes
        dtype = _DTYPE_NAMES[np.dtype(pending.dtype)]
        entries[name] = {"dtype": dtype, "shape": list(pending.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
