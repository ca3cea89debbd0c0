"""What the CUDA plugin says on standard error where there is no driver: here there is none on purpose."""

import contextlib
import importlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

_NOTE = re.compile(rb"cudart_stub\.cc|All log messages before absl::InitializeLog")


@contextlib.contextmanager
def left_out() -> Iterator[None]:
    """Standard error without these notes; all else that is written meanwhile comes at the end."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            for line in file:
                if not _NOTE.search(line):
                    os.write(2, line)


def import_without(module: str) -> None:
    """Imports a module that imports the plugin, as the first thing that a process does."""
    with left_out():
        importlib.import_module(module)
