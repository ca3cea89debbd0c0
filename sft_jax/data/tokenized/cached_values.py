"""Numbers of tokens that a model gave, kept beside the tokenized examples under a key of everything they depend on.

A file is the sha256 of its values in hexadecimal, then the values, little-endian: float32, or records of some numbers.
It appears whole or not at all, and one that is damaged is made again.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.agreement import agreed, exchanged
from sft_jax.data.tokenized.cache import entry_name

Values = np.ndarray  # of one axis
FLOAT32 = np.dtype("<f4")
_DIGEST = 64  # bytes of a sha256 in hexadecimal


def cached_values(
    directory: Path | None, key: dict[str, Any], count: int, make: Callable[[], Values], dtype: np.dtype = FLOAT32
) -> tuple[Values, str]:
    """The values of a key, made first where there are none or they are damaged; and in words where they come from.

    All processes come here, and make them together where one of them has none.

    Args:
        directory: of the cache; None keeps nothing.
        key: what they depend on, in the types of JSON.
        count: how many there are.
        make: makes them, on every process.
        dtype: of a value; that of records has fields. Little-endian.
    """
    if directory is None:
        return make(), "computed, not kept"
    path = directory / f"{entry_name(key)}.values"
    with agreed():
        found, note = _opened(path, count, dtype)
    if all(json.loads(said) for said in exchanged(json.dumps(found is not None))):
        return found, note
    made = make()
    with agreed():
        if found is None:
            note += _kept(path, made, dtype)
    return made, note


def _opened(path: Path, count: int, dtype: np.dtype) -> tuple[Values | None, str]:
    """The values of a file, None where it is not whole; and in words where they come from then."""
    if not path.exists():
        return None, "computed"
    content = path.read_bytes()
    digest, values = content[:_DIGEST], content[_DIGEST:]
    if len(values) != dtype.itemsize * count:
        return None, f"computed again: {path} has {len(content)} bytes, expected {_DIGEST + dtype.itemsize * count}"
    if hashlib.sha256(values).hexdigest().encode() != digest:
        return None, f"computed again: {path} was changed, its checksum differs"
    return np.frombuffer(values, dtype), f"from the cache, {path}"


def _kept(path: Path, values: Values, dtype: np.dtype) -> str:
    """Writes a file that appears whole or not at all, and says so; values that are at hand need no disk."""
    content = np.ascontiguousarray(values, dtype).tobytes()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
            try:
                file.write(hashlib.sha256(content).hexdigest().encode() + content)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(file.name)
                raise
    except OSError as error:
        return f", not kept ({error})"
    return f", kept in {path}"
