"""Export directories: filled under a temporary name, and renamed once everything in them has been checked.

In a bucket, where nothing can be renamed, the files are copied to their final place instead; the config, without which
no library takes the directory for a model, is copied last.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from sft_jax.runs.workdir import is_remote

GOLDEN = "golden.json"  # every export of a model has one; what has none is not replaced
_LAST = ("config.json", "adapter_config.json")


class ExportError(ValueError):
    """An export that cannot be made, or was made and is not what it should be."""


def check_free(out: epath.Path, force: bool, mark: str = GOLDEN, flag: str = "--out") -> None:
    """Checks that `out` may be written.

    Args:
        out: the directory.
        force: an earlier export there may be replaced.
        mark: file that every such export has.
        flag: that names the directory.

    Raises:
        ExportError: something is there; with `force`, something that is no earlier export.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ExportError(f"{flag}={out} is a file; give a directory that does not exist yet")
    if not any(out.iterdir()):
        return
    if not force:
        raise ExportError(f"{flag}={out} exists; give another directory, or --force to replace an earlier export")
    if not (out / mark).exists():
        raise ExportError(
            f"{flag}={out} has no {mark}, so it is no earlier export: --force does not replace it; give "
            "another directory"
        )


def files_in(directory: epath.Path) -> dict[str, epath.Path]:
    """The files of a directory and its folders, by their path in it, in order."""
    found = {}
    for path in sorted(directory.iterdir()):
        if path.is_dir():
            found |= {f"{path.name}/{name}": file for name, file in files_in(path).items()}
        else:
            found[path.name] = path
    return found


@contextlib.contextmanager
def filled(out: epath.Path, force: bool, mark: str = GOLDEN, flag: str = "--out") -> Iterator[epath.Path]:
    """A directory to fill, which becomes `out` at the end of the block, unless that raises.

    What an export that was killed left behind is removed.

    Raises:
        ExportError: see `check_free`.
    """
    check_free(out, force, mark, flag)
    staging = out.parent / f".{out.name}.partial"
    if staging.exists():
        staging.rmtree()
    staging.mkdir(parents=True)
    try:
        yield staging
        _publish(staging, out)
    finally:
        if staging.exists():
            staging.rmtree()


def _publish(staging: epath.Path, out: epath.Path) -> None:
    if is_remote(out):
        if out.exists():
            out.rmtree()
        out.mkdir(parents=True)
        for name, file in sorted(files_in(staging).items(), key=lambda item: item[0] in _LAST):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            file.copy(out / name)
        return
    replaced = Path(out.parent) / f".{out.name}.replaced"
    if out.exists():
        os.rename(out, replaced)
    os.rename(staging, out)
    if replaced.exists():
        epath.Path(replaced).rmtree()
