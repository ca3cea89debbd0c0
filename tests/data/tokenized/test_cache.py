"""The cache: found again only if nothing changed, never half written, damaged or shared by mistake."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sft_jax.data.tokenized import Counts, Tokenized, TokenizedExamples
from sft_jax.data.tokenized.cache import (
    NewEntry,
    cache_directory,
    cached_examples,
    cached_json,
    entry_name,
    found_entry,
)
from sft_jax.data.tokenized.example_store import ABOUT

KEY = {"files": [["a.jsonl", "0123"]]}


def writing(seen, pairs=(([1, 2], [0, 1]),)):
    """A function that makes examples, and notes that it was called."""

    def write(writer):
        seen.append(writer)
        examples = TokenizedExamples.from_examples(pairs, [f"a.jsonl:{n}" for n in range(len(pairs))])
        writer.append(Tokenized(examples, [], Counts(len(pairs), len(pairs), 0, len(pairs))))
        return {"n": len(pairs)}

    return write


def test_made_once_and_found_again(tmp_path):
    made = []
    first, said_first = cached_examples(tmp_path / "cache", KEY, writing(made))
    second, said_second = cached_examples(tmp_path / "cache", KEY, writing(made))
    assert len(made) == 1
    assert first.examples.fingerprint() == second.examples.fingerprint()
    assert ("tokenized" in said_first, "from the cache" in said_second) == (True, True)
    cached_examples(tmp_path / "cache", KEY | {"template": "x"}, writing(made))
    assert len(made) == 2


def test_of_two_that_make_an_entry_beside_one_another_the_first_keeps_it(tmp_path):
    assert found_entry(tmp_path, KEY)[0] is None
    with NewEntry(tmp_path, KEY, "one") as one, NewEntry(tmp_path, KEY, "other") as other:
        other.keep(writing([])(other.writer))
        cached_examples(
            tmp_path, {"files": []}, writing([])
        )  # removes what abandoned writers left, of which these are none
        one.keep(writing([], [([3], [0])])(one.writer))
    found, said = found_entry(tmp_path, KEY)
    assert found.examples.tokens.tolist() == [1, 2]
    assert "from the cache" in said
    with pytest.raises(OSError, match="full"), NewEntry(tmp_path, KEY | {"n": 1}, "third"):
        raise OSError("the disk is full")
    entries = {entry_name(KEY), entry_name({"files": []})}
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == entries
    assert {path.stem for path in tmp_path.glob("*.lock")} <= entries


@pytest.mark.parametrize("name", [ABOUT, "tokens", "ids.ends"])
def test_a_damaged_entry_is_made_again_and_said(tmp_path, name):
    made = []
    cached_examples(tmp_path, KEY, writing(made))
    file = tmp_path / entry_name(KEY) / name
    file.write_bytes(file.read_bytes()[:-1])
    found, said = cached_examples(tmp_path, KEY, writing(made))
    assert len(made) == 2
    assert "damaged" in said
    assert name in said
    assert found.examples.tokens.tolist() == [1, 2]
    assert "from the cache" in cached_examples(tmp_path, KEY, writing(made))[1]


@pytest.mark.parametrize("link", [False, True])
def test_a_file_in_the_place_of_an_entry_is_replaced_and_said(tmp_path, link):
    entry = tmp_path / entry_name(KEY)
    if link:
        entry.symlink_to(tmp_path / "nothing")
    else:
        entry.write_text("no examples")
    found, said = cached_examples(tmp_path, KEY, writing([]))
    assert "damaged" in said
    assert found.examples.tokens.tolist() == [1, 2]
    assert "from the cache" in cached_examples(tmp_path, KEY, writing([]))[1]


def test_a_directory_without_locks_names_the_flag(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", _no_locks)
    with pytest.raises(
        ValueError, match=rf"--config\.data\.cache={tmp_path}: .*\.lock.*No locks available.*local disk"
    ):
        cached_examples(tmp_path, KEY, writing([]))


def _no_locks(*arguments):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_a_small_value_that_cannot_be_kept_is_made_anew(tmp_path, monkeypatch):
    made = []
    make = lambda: made.append(1) or [1]
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", _no_room)
        assert cached_json(tmp_path, KEY, make) == [1]
    assert list(tmp_path.iterdir()) == []
    for _ in range(2):
        assert cached_json(tmp_path, KEY, make) == [1]
    assert len(made) == 2


def _no_room(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_without_a_cache_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found, said = cached_examples(None, KEY, writing([]))
    assert found.examples.tokens.tolist() == [1, 2]
    assert list(found.examples.ids) == ["a.jsonl:0"]
    assert "not cached" in said
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def fail(writer):
        writing([])(writer)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_examples(tmp_path, KEY, fail)
    assert [path.name for path in tmp_path.iterdir()] == [entry_name(KEY) + ".lock"]


_WRITER = """
import signal, sys
from pathlib import Path
from sft_jax.data.tokenized.cache import cached_examples
from tests.data.tokenized.test_cache import KEY, writing

def write(writer):
    writing([])(writer)
    print("writing", flush=True)
    signal.pause()
    return {}

cached_examples(Path(sys.argv[1]), KEY | {"n": sys.argv[2]}, write)
"""


def test_a_killed_writer_leaves_nothing_that_is_used(tmp_path):
    for number in "01":
        command = [sys.executable, "-c", _WRITER, str(tmp_path), number]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3])
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert len(list(tmp_path.glob("*.partial-*"))) == 1  # the second writer cleared away what the first one left
    made = []
    cached_examples(tmp_path, KEY | {"n": "0"}, writing(made))
    assert len(made) == 1
    assert list(tmp_path.glob("*.partial-*")) == []


_WAITED_FOR = """
import os
import sys
from pathlib import Path
from sft_jax.data.tokenized.cache import cached_examples
from tests.data.tokenized.test_cache import KEY, writing

def say(word):
    os.write(1, word.encode() + b"\\n")  # at once: the processes share a pipe

def write(writer):
    say("made")
    sys.stdin.readline()
    return writing([])(writer)

examples = cached_examples(Path(sys.argv[1]), KEY, write, lambda: say("waiting"))[0].examples
assert examples.tokens.tolist() == [1, 2]
"""


def waited_for(directory, told, said):
    """A process that says what it does, and makes the entry, if it has to, once it is told a line."""
    command = [sys.executable, "-c", _WAITED_FOR, str(directory)]
    return subprocess.Popen(command, stdin=told, stdout=said, cwd=Path(__file__).parents[3], text=True, bufsize=1)


def test_processes_that_want_the_same_entry_make_it_once(tmp_path):
    """One makes it when the others already wait for it."""
    (told, tell), (listen, said) = os.pipe(), os.pipe()
    processes = [waited_for(tmp_path, told, said) for _ in range(3)]
    os.close(told)
    os.close(said)
    with open(tell, "w") as tell, open(listen) as listen:
        found = sorted(next(listen) for _ in processes)
        assert found == ["made\n", "waiting\n", "waiting\n"]
        tell.write("go on\n")
        tell.flush()
        assert [process.wait() for process in processes] == [0] * 3
        assert listen.read() == ""


def test_waiting_is_said(tmp_path):
    process = waited_for(tmp_path, subprocess.PIPE, subprocess.PIPE)
    assert process.stdout.readline() == "made\n"
    said = []

    def waiting():
        said.append("waiting")
        process.stdin.write("go on\n")

    cached_examples(tmp_path, KEY, writing([]), waiting)
    assert process.wait() == 0
    assert said == ["waiting"]


def test_what_the_setting_means(monkeypatch):
    monkeypatch.setenv("HOME", "/home/u")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_directory("") is None
    assert cache_directory("auto") == Path("/home/u/.cache/sft_jax/data")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch/u")
    assert cache_directory("auto") == Path("/scratch/u/sft_jax/data")
    assert cache_directory("~/rows") == Path("/home/u/rows")
    with pytest.raises(ValueError, match=r"--config\.data\.cache=gs://b/c: must be a directory on a local disk"):
        cache_directory("gs://b/c")


def test_a_directory_that_cannot_be_written_names_the_flag(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=rf"--config\.data\.cache={tmp_path}/file/rows: .*Not a directory.*empty"):
        cached_examples(tmp_path / "file" / "rows", KEY, writing([]))
    assert os.listdir(tmp_path) == ["file"]
