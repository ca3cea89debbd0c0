"""A pool of worker processes that take runs one after the other; what becomes of the runs, whatever becomes of workers.

A worker is a process that speaks the protocol of `worker.py`. It gets another run when it has ended one. When it dies,
its run has failed in this attempt, and another worker takes its place.
"""

import collections
import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from sft_jax.sweeps.launchers.places import Place

_TICK_SECONDS = 0.25
_LAST_WORDS_SECONDS = 5.0  # to read what a worker said before it died
_LEAVING_SECONDS = 20.0  # for an idle worker to leave
_SAID = 2000  # characters
_DONE = ("finished", "stopped_early", "paused")
_NOT_AGAIN = (*_DONE, "diverged")  # the same steps would diverge again


class WorkersError(RuntimeError):
    """No worker can be started."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended in this pool.

    Attributes:
        state: as in `result.json`; `waiting` for one that had no turn.
        error: why it failed.
    """

    state: str
    error: str | None = None

    @property
    def done(self) -> bool:
        """Whether it came to its end, or to the step at which it was to pause."""
        return self.state in _DONE


class Watcher(Protocol):
    """What is told of runs; called in the thread of `Pool.run`."""

    def started(self, name: str) -> None:
        """A worker has it."""

    def counted(self, name: str, total_steps: int) -> None:
        """It is known how many steps it has."""

    def lost(self, name: str, outcome: Outcome) -> Outcome:
        """Its worker died without a word; says how it ended, from what is on disk."""

    def ended(self, name: str, outcome: Outcome, again: bool) -> None:
        """It ended; `again`: it will have another attempt."""

    def stopping(self, number: int) -> None:
        """A signal asks for an end."""

    def note(self, text: str) -> None:
        """Something else that a person should know."""

    def tick(self) -> None:
        """Some time has passed, or something has happened."""


class Pool:
    """Worker processes, one in each place.

    Attributes:
        stopped_by: the signal that ended it early; None for none.
    """

    def __init__(self, command: Sequence[str], places: Sequence[Place], watcher: Watcher, log: Path, retries: int = 0):
        """Starts nothing yet.

        Args:
            command: of a worker.
            places: where they run.
            watcher: told of everything.
            log: file to which workers' own output is appended; that of runs is elsewhere.
            retries: further attempts of a run that fails.
        """
        self._command, self._places, self._watcher, self._log = command, list(places), watcher, log
        self._log_start, self._retries = log.stat().st_size if log.exists() else 0, retries
        self._events: queue.SimpleQueue[tuple[_Worker | None, dict | None]] = queue.SimpleQueue()
        self._workers: list[_Worker] = []
        self._waiting: collections.deque[str] = collections.deque()
        self._attempts: collections.Counter[str] = collections.Counter()
        self._outcomes: dict[str, Outcome] = {}
        self._asked: list[int] = []  # signals
        self._told = 0
        self.stopped_by: int | None = None

    def run(self, names: Sequence[str]) -> dict[str, Outcome]:
        """Executes runs; returns how each of them ended.

        SIGINT and SIGTERM: no further run is started, and those in progress save and end. A second SIGINT kills them.

        Raises:
            WorkersError: workers die before they are ready; nothing can be executed.
        """
        self._waiting.extend(names)
        self._outcomes = {name: Outcome("waiting") for name in names}
        try:
            with self._signals():
                while self._go_on():
                    with contextlib.suppress(queue.Empty):
                        self._handle(*self._events.get(timeout=_TICK_SECONDS))
                    self._watcher.tick()
        finally:
            self._leave()
        return self._outcomes

    def _go_on(self) -> bool:
        """Obeys signals, gives runs to workers; False when there is nothing left to wait for."""
        self._obey()
        while not self.stopped_by and len(self._workers) < min(len(self._places), self._left()):
            self._start()
        for worker in self._workers:
            if worker.ready and worker.run is None and self._waiting and not self.stopped_by:
                self._give(worker, self._waiting.popleft())
        if self._waiting and not self._workers and not self.stopped_by:
            said = _tail(self._log, self._log_start)
            raise WorkersError(f"workers end before they are ready; the last of what they said:\n{said}")
        busy = any(worker.run is not None for worker in self._workers)
        return busy or (bool(self._waiting) and not self.stopped_by)

    def _left(self) -> int:
        return len(self._waiting) + sum(worker.run is not None for worker in self._workers)

    def _start(self) -> None:
        taken = [worker.place for worker in self._workers]
        place = next(place for place in self._places if not any(place is other for other in taken))
        self._workers.append(_Worker(self._command, place, self._log, self._events))

    def _give(self, worker: "_Worker", name: str) -> None:
        worker.run = name
        self._attempts[name] += 1
        self._watcher.started(name)
        worker.tell({"run": name})

    def _handle(self, worker: "_Worker | None", message: dict[str, Any] | None) -> None:
        if worker is None:  # a signal woke us
            return
        if message is None:
            self._workers.remove(worker)
            if not worker.was_ready and not self.stopped_by:
                self._places = [place for place in self._places if place is not worker.place]
                self._watcher.note(f"a worker ended before it was ready: {worker.last_words()}; see {self._log}")
            if worker.run is not None:
                state = "interrupted" if self.stopped_by else "failed"
                self._end(worker.run, self._watcher.lost(worker.run, Outcome(state, worker.last_words())))
        elif "ready" in message:
            worker.ready = worker.was_ready = True
        elif "state" in message:
            worker.run = None
            worker.ready = message["state"] != "interrupted"  # such a worker leaves
            self._end(message["run"], Outcome(message["state"], message["error"]))
        else:
            self._watcher.counted(message["run"], message["total_steps"])

    def _end(self, name: str, outcome: Outcome) -> None:
        again = outcome.state not in _NOT_AGAIN and self._attempts[name] <= self._retries and self.stopped_by is None
        self._outcomes[name] = outcome
        if again:
            self._waiting.append(name)
        self._watcher.ended(name, outcome, again)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Notes signals instead of obeying them; in the main thread alone, as Python has it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            self._asked.append(number)
            self._events.put((None, None))  # may be called in a handler

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _obey(self) -> None:
        for number in self._asked[self._told :]:
            self._told += 1
            if self.stopped_by is None:
                self.stopped_by = number
                self._watcher.stopping(number)
                for worker in self._workers:
                    worker.stop()
            elif number == signal.SIGINT:
                for worker in self._workers:
                    worker.kill()

    def _leave(self) -> None:
        """Ends the workers; one that still trains (there was an error here) saves and leaves by itself."""
        for worker in self._workers:
            worker.close()
        end = time.monotonic() + _LEAVING_SECONDS
        for worker in self._workers:
            if worker.run is None and not worker.left_by(end):
                worker.kill()


class _Worker:
    """A process, and two threads that put what it says and its death into a queue."""

    def __init__(self, command: Sequence[str], place: Place, log: Path, events: queue.SimpleQueue):
        self.place, self.run = place, None
        self.ready = self.was_ready = False
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        with place.taken(), log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=os.environ | {"PYTHONPATH": paths} | place.environment,
                start_new_session=True,  # Ctrl-C is for the launcher; and the group can be killed
            )
        self._reader = threading.Thread(target=self._read, args=(events,), daemon=True)
        self._reader.start()
        self._waiter = threading.Thread(target=self._wait, args=(events,), daemon=True)
        self._waiter.start()

    def tell(self, message: Mapping[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has died, and the thread that waits for it says so
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def stop(self) -> None:
        """Asks it to save and leave; one that has nothing to save ends at once."""
        if self.run is None:
            self.kill()
        else:
            self.tell({"stop": True})

    def kill(self) -> None:
        if self._process.returncode is None:  # else its number may be another's
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def left_by(self, end: float) -> bool:
        self._waiter.join(max(0.0, end - time.monotonic()))
        return not self._waiter.is_alive()

    def last_words(self) -> str:
        status = self._process.returncode
        if status >= 0:
            return f"its worker ended with exit status {status}"
        advice = "; if the machine was out of memory, give fewer --workers" if status == -signal.SIGKILL else ""
        return f"its worker was killed by {signal.Signals(-status).name}{advice}"

    def _read(self, events: queue.SimpleQueue) -> None:
        for line in self._process.stdout:
            events.put((self, json.loads(line)))

    def _wait(self, events: queue.SimpleQueue) -> None:
        """Notices the death of the process itself: others that it started may hold its pipe open."""
        if hasattr(os, "waitid"):
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
            self._reader.join(_LAST_WORDS_SECONDS)
            self.kill()  # what it started; its number is not free before the next line
        self._process.wait()
        self._reader.join(_LAST_WORDS_SECONDS)
        events.put((self, None))


def _tail(path: Path, start: int) -> str:
    """The last of a file, of what stands after `start`."""
    with path.open("rb") as file:
        file.seek(max(start, path.stat().st_size - _SAID))
        return file.read().decode(errors="replace").strip()
