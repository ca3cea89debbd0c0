"""Copies what a run logs into a bucket, beside the training loop: only what changed, and in the background."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from absl import logging
from etils import epath

_PAUSES = (1.0, 5.0, 20.0)  # seconds before what failed is tried again where the run waits for it


class Uploads:
    """Files of a local directory that grow, and their copies in a bucket. Used by one thread."""

    def __init__(self, local: Path, remote: epath.Path):
        """Copies nothing yet: files below `local` go to the same place below `remote`."""
        self._local, self._remote = local, remote
        self._sizes: dict[Path, int] = {}  # of each file when it was last said to have changed
        self._waiting: dict[Path, int] = {}  # how many bytes of each file are to be copied, the first to change first
        self._copying: dict[Path, int] = {}
        self._copy: Future | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")

    def changed(self, path: Path) -> None:
        """A file may have grown; it is copied as far as it goes now."""
        size = path.stat().st_size
        if size != self._sizes.get(path):
            self._sizes[path] = self._waiting[path] = size

    def start(self) -> None:
        """Begins to copy what changed, unless a copy is under way. What failed before is reported and tried again."""
        if self._copy is not None and not self._copy.done():
            return
        error = self._failure()
        if error is not None:
            self._report(error)
        self._submit()

    def finish(self) -> None:
        """Returns when all that changed is in the bucket.

        Raises:
            OSError: it could not be copied, tried several times.
        """
        for pause in (0.0, *_PAUSES):
            error = self._failure()
            if error is not None:
                self._report(error)
                time.sleep(pause)
            if not self._waiting:
                return
            self._submit()
        error = self._failure()
        if error is not None:
            raise OSError(
                f"the log could not be copied to {self._remote} ({type(error).__name__}: {error}). What is missing "
                f"there is in {self._local}."
            ) from error

    def close(self) -> None:
        """Finishes, and ends the thread."""
        try:
            self.finish()
        finally:
            self._thread.shutdown()

    def _submit(self) -> None:
        if self._waiting:
            self._copying, self._waiting = self._waiting, {}
            self._copy = self._thread.submit(self._copy_files, self._copying)

    def _failure(self) -> BaseException | None:
        """Waits for the copy under way; if it failed, its files wait again."""
        error = None if self._copy is None else self._copy.exception()
        self._copy = None
        if error is not None:
            self._waiting = self._copying | self._waiting
        return error

    def _report(self, error: BaseException) -> None:
        logging.warning("the log is not yet in %s, which is tried again: %r", self._remote, error)

    def _copy_files(self, sizes: dict[Path, int]) -> None:
        for path, size in sizes.items():
            target = self._remote / path.relative_to(self._local).as_posix()
            target.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as file:
                target.write_bytes(file.read(size))
