"""Digests of the files of a checkpoint: written into its directory when it is complete, compared when it is read.

Any file that was truncated, changed or lost is detected this way. Without digests, only files of a known format can be
checked.
"""

import concurrent.futures
import hashlib
import json
from collections.abc import Iterable

from etils import epath

from sft_jax.runs.workdir import write_whole

FILE = "digests.json"
_METRICS = "metrics/metrics"  # JSON, which orbax reads of every checkpoint when it opens any; not all have some
_METADATA, _ARRAYS = "_CHECKPOINT_METADATA", "state/_METADATA"  # JSON
MISSING = "is missing"  # what is said last of a file that is not there
_BLOCK = 1 << 22
_THREADS = 8


def write_digests(directory: epath.Path) -> None:
    """Writes the digests of a complete checkpoint."""
    names = sorted(path.relative_to(directory).as_posix() for path in _files(directory))
    files = dict(zip(names, _digests(directory, names), strict=True))
    write_whole(directory / FILE, json.dumps({"files": files}, indent=1) + "\n")


def has_digests(directory: epath.Path) -> bool:
    """False for a checkpoint whose process was ended before it wrote them."""
    return (directory / FILE).exists()


def damage_of_opened(directory: epath.Path) -> list[str]:
    """What is wrong with the file that is read when no checkpoint is yet asked for, as lines."""
    if not has_digests(directory):
        return _not_json(directory, _METRICS) if (directory / _METRICS).exists() else []
    expected, _ = _expected(directory)
    return _differences(directory, {name: expected[name] for name in (_METRICS,) if name in expected})


def damage_of(directory: epath.Path, part: int = 0, parts: int = 1) -> list[str]:
    """What is wrong with the files of a checkpoint, as lines: a file and what is the matter; empty where all is well.

    Args:
        directory: of the checkpoint.
        part: number of this process, which looks at the files that fall to it.
        parts: how many processes look.
    """
    if not has_digests(directory):
        return _not_of_form(directory)
    expected, wrong = _expected(directory)
    names = sorted(expected)[part::parts]
    return wrong or _differences(directory, {name: expected[name] for name in names})


def _not_of_form(directory: epath.Path) -> list[str]:
    """What is wrong with the files that have a known form."""
    has_metrics = (directory / _METRICS).exists()
    names = (_METRICS, _METADATA, _ARRAYS) if has_metrics else (_METADATA, _ARRAYS)
    return [line for name in names for line in _not_json(directory, name)]


def _differences(directory: epath.Path, expected: dict[str, list]) -> list[str]:
    lines = []
    for (name, (size, digest)), found in zip(expected.items(), _digests(directory, expected), strict=True):
        if found is None:
            lines.append(f"{name} {MISSING}")
        elif found[0] != size:
            lines.append(f"{name} has {found[0]:,} bytes in place of {size:,}")
        elif found[1] != digest:
            lines.append(f"{name} has other bytes than were written")
    return lines


def _expected(directory: epath.Path) -> tuple[dict[str, list], list[str]]:
    """By file its size and digest; and what is wrong with the list of them itself."""
    try:
        return dict(json.loads((directory / FILE).read_bytes())["files"]), []
    except FileNotFoundError:
        return {}, [f"{FILE} {MISSING}"]
    except (ValueError, KeyError, TypeError):
        return {}, [f"{FILE} is no list of digests"]


def _not_json(directory: epath.Path, name: str) -> list[str]:
    try:
        json.loads((directory / name).read_bytes())
    except FileNotFoundError:
        return [f"{name} {MISSING}"]
    except ValueError:
        return [f"{name} is not JSON"]
    return []


def _files(directory: epath.Path) -> Iterable[epath.Path]:
    for path in directory.iterdir():
        if path.is_dir():
            yield from _files(path)
        elif not path.name.startswith(FILE):
            yield path


def _digests(directory: epath.Path, names: Iterable[str]) -> list[list | None]:
    """Of each file its size and sha256; None where it is missing."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda name: _digest(directory / name), names))


def _digest(path: epath.Path) -> list | None:
    sha, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                sha.update(block)
                size += len(block)
    except FileNotFoundError:
        return None
    return [size, sha.hexdigest()]
