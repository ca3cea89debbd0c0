"""What a command says of exceptions: of its own, of libraries, of memory and disks that are full."""

import errno
import json
import logging

import jinja2
import pytest

from sft_jax.failures import is_said_again, message_of
from sft_jax.training.durations import parse

ORBAX = (
    'RESOURCE_EXHAUSTED: Failed writing: "/disk/run/checkpoints/4/d/b7": Failed to write 61813 bytes to file 20: '
    "No space left on device [os_error_code='28']" + " [source='x']" * 2000
)
XlaRuntimeError = type("XlaRuntimeError", (RuntimeError,), {})


def said_of(raises, *arguments):
    with pytest.raises(Exception) as caught:  # noqa: PT011  any
        raises(*arguments)
    return message_of(caught.value)


def fail(error, cause=None):
    raise error from cause


def test_our_own_errors_are_shown_as_they_are():
    assert said_of(parse, "3 hours", "duration").startswith("--config.duration='3 hours' is not a duration; give a")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (IsADirectoryError(errno.EISDIR, "Is a directory", "runs/x"), "runs/x: Is a directory"),
        (
            PermissionError(errno.EACCES, "Permission denied", "a.json"),
            "a.json: Permission denied. The file or directory",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "log"), "log: No space left on device. Free some space and"),
        (OSError(errno.ENOSPC, "No space left on device"), "a file: No space left on device. Free"),
        (ValueError(ORBAX), "/disk/run/checkpoints/4/d/b7: No space left on device. Free some space"),
        (XlaRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\n" * 99), "out of memory: RESOURCE_EX"),
        (
            MemoryError("Unable to allocate 9 TiB"),
            "out of memory: Unable to allocate 9 TiB\nIn training less is needed",
        ),
    ],
)
def test_disks_files_and_memory(error, expected):
    said = said_of(fail, error)
    assert said.startswith(expected)
    assert len(said) < 800


def test_the_cause_behind_a_librarys_error_counts():
    """orbax says that a handler is incompatible where the disk was full."""
    assert "No space left on device" in said_of(fail, RuntimeError("incompatible handler"), OSError(errno.ENOSPC, "x"))


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: json.loads("{'a'"), "Expecting property name enclosed in double quotes"),
        (lambda: jinja2.Template("{% if %}"), "Expected an expression, got 'end of statement block'"),
    ],
)
def test_a_librarys_error_is_one_line_with_its_kind(call, expected):
    said = said_of(call)
    assert said.startswith(expected)
    assert "\n" not in said
    assert said.endswith((".JSONDecodeError)", ".TemplateSyntaxError)"))


@pytest.mark.parametrize("error", [TypeError("x"), KeyError("x"), AssertionError("x"), IndexError("x"), ValueError()])
def test_faults_in_the_code_are_not_explained_away(error):
    assert said_of(fail, error) is None


def test_where_in_this_project_is_said():
    """A library's error is named with the line here that called it."""
    from sft_jax.runs.metric_log import read_metrics

    assert "No such file or directory, at sft_jax/runs/metric_log.py:" in said_of(read_metrics, "/nowhere/m.jsonl")


def test_what_orbax_logs_it_raises_too():
    def record(path, info):
        return logging.LogRecord("absl", logging.ERROR, path, 1, "failed", None, info)

    info = (ValueError, ValueError("x"), None)
    assert is_said_again(record("/site-packages/orbax/checkpoint/future.py", info))
    assert not is_said_again(record("/site-packages/orbax/checkpoint/future.py", None))
    assert not is_said_again(record("/work/sft_jax/train.py", info))
