"""Tokenizing with several processes: chunks go out to workers and come back in order.

For data sets that would take one process long (see `tokenized_chunks`). The result does not depend on the number of
workers.
"""

import collections
import concurrent.futures
import contextlib
import itertools
import os
import pickle
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.data.tokenized import DroppedRow, Tokenized
from sft_jax.data.tokenizing import tokenize_chunk
from sft_jax.data.views import NO_TEMPLATE, PromptTemplate

Chunk = Sequence[Record | DroppedRow]

ALONE_SECONDS = 2.0  # what takes longer gets workers: one needs about that long to start
_MOST_WORKERS = 16  # by default: more than one process can read for
_WAITING = 2  # chunks a worker that are ready or on their way


class WorkerError(RuntimeError):
    """A worker ended before its work did."""


def worker_count(asked: int) -> int:
    """The number of workers: as asked, or for -1 one for each core this process may use."""
    if asked >= 0:
        return asked
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, _MOST_WORKERS)


def tokenized_chunks(
    chunks: Iterable[Chunk],
    renderer: ConversationRenderer,
    max_example_tokens: int,
    workers: int = 0,
    alone_seconds: float = ALONE_SECONDS,
    template: PromptTemplate = NO_TEMPLATE,
    on_start: Callable[[int], object] = lambda count: None,
) -> Iterator[Tokenized]:
    """Tokenizes chunk by chunk, in order; the first seconds in this process, and what is left after them with workers.

    Args:
        chunks: records.
        renderer: the chat template and tokenizer of the model.
        max_example_tokens: the longest an example may be.
        workers: how many processes; 0: this one alone.
        alone_seconds: so much is done before workers are started.
        template: of prompts, see `tokenize_chunk`.
        on_start: called with the number of workers when they are started.

    Raises:
        WorkerError: a worker was killed.
        ValueError: see `tokenize_chunk`.
        RuntimeError: see `tokenize_chunk`.
    """
    chunks, started = iter(chunks), time.monotonic()
    while not workers or time.monotonic() - started < alone_seconds:
        chunk = next(chunks, None)
        if chunk is None:
            return
        yield tokenize_chunk(chunk, renderer, max_example_tokens, template)
    first = next(chunks, None)
    if first is not None:
        on_start(workers)
        with Workers(workers, renderer, max_example_tokens, template) as pool:
            yield from pool.map(itertools.chain([first], chunks))


class Workers:
    """Processes that tokenize; a context manager, at whose end none of them is left."""

    def __init__(
        self,
        count: int,
        renderer: ConversationRenderer,
        max_example_tokens: int,
        template: PromptTemplate = NO_TEMPLATE,
    ):
        """Starts them."""
        task = pickle.dumps((renderer, max_example_tokens, template), protocol=pickle.HIGHEST_PROTOCOL)
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._workers = [_Worker(task) for _ in range(count)]
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = concurrent.futures.ThreadPoolExecutor(max_workers=count)

    @property
    def process_ids(self) -> list[int]:
        """Of the processes."""
        return [worker.process_id for worker in self._workers]

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)  # no further question is asked
        for worker in self._workers:
            worker.stop()
        self._threads.shutdown()

    def map(self, chunks: Iterable[Chunk]) -> Iterator[Tokenized]:
        """The examples of each chunk, in order; no more chunks are taken than the workers keep up with."""
        pending: collections.deque[concurrent.futures.Future[Tokenized]] = collections.deque()
        for chunk in chunks:
            pending.append(self._threads.submit(self._ask_one, chunk))
            if len(pending) >= _WAITING * len(self._workers):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _ask_one(self, chunk: Chunk) -> Tokenized:
        worker = self._idle.get()  # there is one: there are as many threads as workers
        try:
            return worker.ask(chunk)
        finally:
            self._idle.put(worker)


class _Worker:
    """One process."""

    def __init__(self, task: bytes):
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sft_jax.data.tokenizing.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"},
        )
        self._task: bytes | None = task  # sent before the first question, when the process had time to start

    @property
    def process_id(self) -> int:
        return self._process.pid

    def ask(self, chunk: Chunk) -> Tokenized:
        try:
            if self._task is not None:
                self._process.stdin.write(self._task)
                self._task = None
            pickle.dump(chunk, self._process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
            answer = pickle.load(self._process.stdout)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError) as error:
            raise WorkerError(self._ended(chunk)) from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _ended(self, chunk: Chunk) -> str:
        status = self._process.wait()
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        return (
            f"A tokenizing process {how} between rows {chunk[0].id} and {chunk[-1].id}. Where memory is short, give "
            "fewer (--config.loader.tokenize_workers=1, or 0: none); an error of its own stands above."
        )

    def stop(self) -> None:
        self._process.kill()  # it has nothing to lose
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):  # part of a question may be left
            self._process.stdin.close()
        self._process.stdout.close()
