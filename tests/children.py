"""Processes for the tests that need some of their own, started quickly: imports take longer than what tiny models do.

They are children of one process, which has imported everything and started nothing: this module, as a script. Tests
have children by the fixture `children`, each of which calls a function of a module with one argument:

    children.run([("tests.training.driver:train", {"root": …})])
"""

import atexit
import contextlib
import dataclasses
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[1]
Call = tuple[str, Any]  # a function, as `module:name`, and its argument, which JSON can hold


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        status: as `subprocess` says it.
        output: all that it wrote.
        result: what its function returned, as JSON has it; None where it did not return.
    """

    status: int
    output: str
    result: Any


class Children:
    """Has children made, by a process that is started, with the environment of then, when the first are asked for."""

    def __init__(self):
        self._parent: subprocess.Popen | None = None

    def run(self, calls: Sequence[Call], patience: float = PATIENCE_SECONDS) -> list[Ended]:
        """All at the same time, until the last has ended.

        Raises:
            AssertionError: they have not ended in time; says what each wrote. None of them is left.
        """
        with tempfile.TemporaryDirectory() as directory:
            asked = [
                {"function": function, "argument": argument, "place": f"{directory}/{number}"}
                for number, (function, argument) in enumerate(calls)
            ]
            statuses = self._ask(asked, patience)
            outputs = [_text(f"{each['place']}.output") for each in asked]
            if statuses is None:
                raise AssertionError(f"children have not ended within {patience} s: {outputs}")
            results = [json.loads(_text(f"{each['place']}.result") or "null") for each in asked]
            return [Ended(*end) for end in zip(statuses, outputs, results, strict=True)]

    def _ask(self, calls: list[dict], patience: float) -> list[int] | None:
        """Statuses of the children; None, and no child left, where they take too long."""
        if self._parent is None:
            self._parent = subprocess.Popen(
                [sys.executable, "-m", "tests.children"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        self._parent.stdin.write(json.dumps(calls).encode() + b"\n")
        self._parent.stdin.flush()
        if not select.select([self._parent.stdout], [], [], patience)[0]:
            self.end()
            return None
        if not (answer := self._parent.stdout.readline()):
            self.end()
            raise RuntimeError("the process that makes children has ended")
        return json.loads(answer)

    def end(self) -> None:
        """The process, and what children it has."""
        if self._parent is not None:
            os.killpg(self._parent.pid, signal.SIGKILL)
            self._parent.communicate()
            self._parent = None


@pytest.fixture(scope="session")
def children():
    made = Children()
    yield made
    made.end()


def command(arguments: Sequence[str]) -> None:
    """`python -m …` with these arguments; the name of the module comes first."""
    sys.argv = list(arguments)
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def _text(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def _main() -> None:
    """Makes children as its input says, a line of calls at a time; answers with a line of how they ended."""
    answers = os.fdopen(os.dup(1), "w")
    gc.freeze()  # or looking for what is unused would copy the memory that children share with this process
    for line in sys.stdin:
        pids = [_started(**call) for call in json.loads(line)]
        json.dump([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids], answers)
        answers.write("\n")
        answers.flush()


def _started(function: str, argument: Any, place: str) -> int:
    """The number of the process that calls the function."""
    if child := os.fork():
        return child
    status = 1
    try:
        written = os.open(f"{place}.output", os.O_WRONLY | os.O_CREAT)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(written, 1)
        os.dup2(written, 2)
        status = _status_of(function, argument, place)
    finally:
        os._exit(status)


def _status_of(function: str, argument: Any, place: str) -> int:
    """What Python would end with."""
    module, _, name = function.partition(":")
    try:
        result = getattr(importlib.import_module(module), name)(argument)
        Path(f"{place}.result").write_text(json.dumps(result))
        return 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:  # noqa: BLE001  as Python does, whatever it is
        sys.excepthook(*sys.exc_info())
        return 1
    finally:
        atexit._run_exitfuncs()  # os._exit does not: processes of a distributed run leave together
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
            sys.stderr.flush()


if __name__ == "__main__":
    for name in ("tests.training.driver", "tests.preparation.together_driver", "tests.models.loading_driver"):
        importlib.import_module(name)
    with_torch = sys.modules.setdefault("torch", None)  # which tensorboardX would import, and nothing here needs
    importlib.import_module("tensorboardX")
    if with_torch is None:
        del sys.modules["torch"]
    _main()
