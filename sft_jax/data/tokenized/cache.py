"""The cache of tokenized examples: made once, found again under a key of everything they depend on.

The step between tokenizing and packing. An entry is an example store (example_store.py) in a directory named after its
key. It is written under another name and renamed when it is complete, so that no run sees part of one; and it is
checked when it is opened.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from sft_jax.data.tokenized import Tokenized
from sft_jax.data.tokenized.example_store import ExampleStoreError, ExampleStoreWriter, open_examples, sync_directory

_PARTIAL = ".partial-"
_LOCK = ".lock"

Write = Callable[[ExampleStoreWriter], Mapping[str, Any]]


def cache_directory(setting: str) -> Path | None:
    """The directory that `config.data.cache` names: "auto" is the user's cache directory, empty is none.

    Raises:
        ValueError: a path in a bucket: examples are mapped into memory from there.
    """
    if not setting:
        return None
    if "://" in setting:
        raise ValueError(
            f"--config.data.cache={setting}: must be a directory on a local disk; examples are read from it"
        )
    if setting != "auto":
        return Path(setting).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sft_jax" / "data"


def cached_examples(
    directory: Path | None, key: dict[str, Any], write: Write, waiting: Callable[[], object] = lambda: None
) -> tuple[Tokenized, str]:
    """The examples of an entry, made first where there is none or it is damaged.

    Processes on one machine that want the same entry at once make it once: the others wait.

    Args:
        directory: of the cache; None writes them to a temporary directory that is deleted once they are mapped.
        key: what the examples depend on, in the types of JSON.
        write: makes the examples, and returns notes on them.
        waiting: called before waiting for another process.

    Returns:
        The examples, and in words where they come from.

    Raises:
        ValueError: the directory cannot be written to, or has no locks.
    """
    if directory is None:
        with tempfile.TemporaryDirectory(prefix="sft_jax_examples_") as temporary:
            _fill(Path(temporary), key, write)
            return open_examples(Path(temporary)), "tokenized, not cached"  # the mapped files outlive their names
    entry = directory / entry_name(key)
    _check_writable(directory)
    with _locked(directory, entry.name, waiting):
        return _open_or_make(entry, key, write)


def cached_json(directory: Path | None, key: dict[str, Any], make: Callable[[], Any]) -> Any:
    """A small value, kept in a file of its own beside the entries.

    Args:
        directory: of the cache; None makes the value anew.
        key: what it depends on, in the types of JSON.
        make: makes it, in the types of JSON.
    """
    if directory is None:
        return make()
    path = directory / f"{entry_name(key)}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # none yet, or a damaged one: made again
        found = json.loads(path.read_bytes())
        if found["sha256"] == _digest(found["value"]):
            return found["value"]
    value = make()
    with contextlib.suppress(OSError):  # it is at hand: a disk that is full must not stop the run
        _write_json(path, {"sha256": _digest(value), "value": value})
    return value


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a file that appears whole or not at all."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False) as file:
        try:
            json.dump(content, file)
            file.flush()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _check_writable(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ValueError(
            f"--config.data.cache={directory}: {error}. Give a local directory to keep tokenized examples in, or an "
            "empty one for none."
        ) from error


def entry_name(key: dict[str, Any]) -> str:
    """The name of the entry of a key."""
    return _digest(key)[:32]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def found_entry(directory: Path, key: dict[str, Any]) -> tuple[Tokenized | None, str]:
    """The examples of an entry, None where there is no whole one; and in words where they come from then.

    Raises:
        ValueError: the directory cannot be written to.
    """
    _check_writable(directory)
    return _opened(directory / entry_name(key))


def _opened(entry: Path) -> tuple[Tokenized | None, str]:
    if not os.path.lexists(entry):
        return None, f"tokenized, kept in {entry}"
    try:
        return open_examples(entry), f"from the cache, {entry}"
    except ExampleStoreError as error:
        return None, f"tokenized again, the entry of the cache was damaged: {error}"


class NewEntry:
    """An entry that is written beside others, who may make the same; a context manager.

    Nobody waits: whoever is first keeps its own. Used where several processes make it together, one of which would
    wait for a lock while the others wait for it.

    Attributes:
        writer: of its examples.
    """

    def __init__(self, directory: Path, key: dict[str, Any], name: str):
        """Begins it in `directory`, under a name that nobody else uses."""
        self._entry, self._key, self._stack = directory / entry_name(key), key, contextlib.ExitStack()
        own = f"{self._entry.name}-{name}"
        with self._stack:  # left here only where something fails
            self._stack.callback((directory / f"{own}{_LOCK}").unlink, missing_ok=True)
            self._stack.enter_context(_locked(directory, own, lambda: None))
            self._partial = Path(tempfile.mkdtemp(prefix=own + _PARTIAL, dir=directory))
            self._stack.callback(shutil.rmtree, self._partial, ignore_errors=True)  # nothing where it was renamed
            self.writer = self._stack.enter_context(ExampleStoreWriter(self._partial))
            self._stack = self._stack.pop_all()

    def __enter__(self) -> "NewEntry":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def keep(self, notes: Mapping[str, Any]) -> None:
        """Completes it; the entry is there afterwards."""
        self.writer.finish(self._key, notes)
        found, _ = _opened(self._entry)
        if found is None:
            _take_place(self._partial, self._entry)


def _take_place(partial: Path, entry: Path) -> None:
    if os.path.lexists(entry):
        _remove(entry)
    partial.rename(entry)
    sync_directory(entry.parent)


def _open_or_make(entry: Path, key: dict[str, Any], write: Write) -> tuple[Tokenized, str]:
    found, note = _opened(entry)
    if found is not None:
        return found, note
    _remove_abandoned(entry)
    partial = Path(tempfile.mkdtemp(prefix=entry.name + _PARTIAL, dir=entry.parent))
    try:
        _fill(partial, key, write)
        _take_place(partial, entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # nothing where it was renamed
    return open_examples(entry), note


def _remove(entry: Path) -> None:
    """Removes what stands in the place of an entry, of whatever kind it is."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


def _fill(directory: Path, key: dict[str, Any], write: Write) -> None:
    with ExampleStoreWriter(directory) as writer:
        writer.finish(key, write(writer))


def _remove_abandoned(entry: Path) -> None:
    """Removes what killed writers left: theirs are the names whose lock is free, or is held here."""
    for partial in entry.parent.glob(f"*{_PARTIAL}*"):
        name = partial.name.split(_PARTIAL)[0]
        if name == entry.name:
            shutil.rmtree(partial, ignore_errors=True)
            continue
        with contextlib.suppress(OSError), _lock_file(partial.parent, name) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _locked(directory: Path, name: str, waiting: Callable[[], object]) -> Iterator[None]:
    """Alone with one entry, among the processes of this machine; the system lets go when a process dies."""
    with contextlib.ExitStack() as stack:
        try:
            _lock(stack.enter_context(_lock_file(directory, name)), waiting)
        except OSError as error:
            raise ValueError(
                f"--config.data.cache={directory}: {name}{_LOCK} cannot be locked ({error}). Give a directory "
                "on a local disk, which has locks, or an empty one for no cache."
            ) from error
        yield


def _lock(file: IO, waiting: Callable[[], object]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting()
        fcntl.flock(file, fcntl.LOCK_EX)


def _lock_file(directory: Path, name: str) -> IO:
    return (directory / f"{name}{_LOCK}").open("a")
