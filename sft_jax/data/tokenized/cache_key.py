"""The cache key of tokenized examples: everything they depend on, so that after any change they are made anew.

Used with cache.py. Files are in the key by their bytes, never by their times; code by its source.
"""

import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from sft_jax.data.rendering import ConversationRenderer
from sft_jax.data.rendering.special_tokens import tokens_in_contents
from sft_jax.data.tokenized.example_store import FORMAT

_PIECE = 1 << 24  # bytes read at a time
_LONG = 1 << 30  # bytes that take a second or more
_END = 1 << 16  # bytes at either end of a file by which processes see that theirs is the same
_PACKAGES = ("datasets", "jinja2", "pyarrow", "tokenizers", "transformers")

# Files and folders of the data layer that only use stored examples: a change in them leaves the examples as they are.
LATER = ("batches.py", "plan")

# Fields of `config.data` that examples do not depend on. Files are in the key by their names and bytes, the date only
# where the template writes one.
NOT_IN_EXAMPLES = frozenset(
    {
        "train",
        "held_out",
        "date",
        "mixture",
        "mixture_packing",
        "benchmarks",
        "retrieval",  # what examples depend on of it is in the key by the content of the corpus
        "fail_on",
        "cache",
        "held_out_split",
        "packing",
        "max_examples_per_sequence",
        "supervised_quantile",
    }
)


Report = Callable[[float], object]  # of a share that is done


def _tell_nobody(share: float) -> None:
    del share


def examples_key(
    files: Sequence[Sequence[str]],
    renderer: ConversationRenderer,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """The key of the examples that `renderer` makes of files.

    Args:
        files: `file_digests` of all that is read, in this order, under the names that begin the ids of their examples.
        renderer: the chat template and tokenizer.
        options: whatever else the examples depend on, in the types of JSON.
    """
    template = json.dumps(renderer.chat_template, sort_keys=True)
    key = {
        "format": FORMAT,
        "files": files,
        "tokenizer": _tokenizer_digest(renderer),
        "template": _sha256(template),
        "options": dict(options),
        "code": code_digest(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES} | {"python": sys.version},
    }
    if "strftime_now" in template:
        key["now"] = renderer.now.isoformat()
    return json.loads(json.dumps(key, default=list))


def file_digests(files: Iterable[tuple[str, epath.PathLike]], report: Report = _tell_nobody) -> list[list[str]]:
    """Name and sha256 of each file, which may lie in a bucket.

    Args:
        files: with their names.
        report: told how much of their bytes is read, where they are so many that it takes a while.
    """
    files = [(name, epath.Path(path)) for name, path in files]
    total, done = sum(path.stat().length for _, path in files), 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        if total >= _LONG:
            report(min(done / total, 1.0))

    return [[name, _file_digest(path, count)] for name, path in files]


def check_unchanged(files: Iterable[tuple[str, epath.PathLike]], digests: Sequence[Sequence[str]]) -> None:
    """Checks that files are still what they were when `file_digests` gave `digests`.

    Raises:
        ValueError: one is not, so what was read in between may be neither what it was nor what it is.
    """
    for (name, path), (_, before) in zip(files, digests, strict=True):
        if file_digests([(name, path)]) != [[name, before]]:
            raise ValueError(
                f"{path} was changed while it was read. Start again once nobody writes to it; nothing was kept."
            )


def _file_digest(path: epath.Path, count: Callable[[int], object]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            count(len(piece))
    return digest.hexdigest()


def file_ends(files: Iterable[tuple[str, epath.PathLike]]) -> list[list]:
    """Name, size, and sha256 of the first and last 64 KiB of each file: quick to compare between processes."""
    return [[name, *_ends(epath.Path(path))] for name, path in files]


def _ends(path: epath.Path) -> tuple[int, str]:
    size = path.stat().length
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(_END))
        file.seek(max(0, size - _END))
        digest.update(file.read(_END))
    return size, digest.hexdigest()


def code_digest(without: Sequence[str] = LATER, root: Path = Path(__file__).parents[1]) -> str:
    """sha256 of the source of a package, by default of the data layer without `LATER`."""
    paths = [path for path in sorted(root.rglob("*.py")) if path.relative_to(root).parts[0] not in without]
    return source_digest(paths, root)


def source_digest(paths: Iterable[Path], root: Path) -> str:
    """sha256 of files of source below `root`, with their names."""
    digest = hashlib.sha256()
    for path in paths:
        source = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(source)}\n".encode() + source)
    return digest.hexdigest()


def _tokenizer_digest(renderer: ConversationRenderer) -> str:
    tokenizer = renderer.tokenizer
    special = json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)
    in_contents = json.dumps(tokens_in_contents(tokenizer))
    return _sha256(f"{type(tokenizer).__name__} {special} {in_contents} {tokenizer.backend_tokenizer.to_str()}")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
