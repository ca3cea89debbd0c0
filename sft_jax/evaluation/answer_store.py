"""Answers that were computed before, by all that they depend on: no answer is computed twice.

A file for each model (by the fingerprint of its weights), a line for each answer: the hash of what was asked, and what
came. A line is written when its answer is there, so that an evaluation goes on where it was stopped.
"""

import hashlib
import json
import os
from typing import Any

from etils import epath

from sft_jax.runs.workdir import is_remote, write_whole

_AT_ONCE = 32  # answers after which a file in a bucket is written anew


class AnswerStore:
    """The answers of one model. With several processes, each has all of them, and one writes."""

    def __init__(self, directory: epath.Path, fingerprint: str, *, writes: bool = True):
        """Reads what is there.

        Args:
            directory: of all stores; with several processes one that all of them see.
            fingerprint: of the model's weights and tokenizer.
            writes: False for all processes but one.

        Raises:
            ValueError: the file has a damaged line, other than a last one that was cut.
        """
        self._path, self._writes = directory / f"{fingerprint}.jsonl", writes
        self._kept: dict[str, Any] = {}
        self._lines: list[str] = []
        self._unwritten = 0
        if self._path.exists():
            self._read()

    def _read(self) -> None:
        lines = self._path.read_text().split("\n")
        # What stands behind the last line break was cut when its writer was ended.
        for number, line in enumerate(lines[:-1], 1):
            try:
                key, value = json.loads(line)
            except (ValueError, TypeError) as error:  # no JSON, or no pair
                raise ValueError(
                    f"{self._path}:{number} is damaged ({error}); remove that line, whose answer is then computed again"
                ) from error
            self._kept[key] = value
            self._lines.append(line)
        if lines[-1] and self._writes:
            self._write_all()

    def get(self, key: str) -> Any:
        """What came for a key of `key_of`; None where that was not asked before."""
        return self._kept.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keeps what came."""
        if key in self._kept:
            return
        self._kept[key] = value
        line = json.dumps([key, value])
        self._lines.append(line)
        if not self._writes:
            return
        if is_remote(self._path):
            self._unwritten += 1
            if self._unwritten >= _AT_ONCE:
                self.flush()
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.fspath(self._path), "a") as file:
            file.write(line + "\n")

    def flush(self) -> None:
        """Writes what is not yet in a bucket."""
        if self._unwritten:
            self._write_all()

    def _write_all(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._path, "".join(f"{line}\n" for line in self._lines))
        self._unwritten = 0


def key_of(asked: Any) -> str:
    """A hash of what was asked, given as plain JSON values."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]
