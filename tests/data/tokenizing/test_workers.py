"""Tokenizing with processes: the same examples as without, and no process that is forgotten."""

import functools
import os
import pickle
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sft_jax.data.conversations import Chat
from sft_jax.data.records import Record, RecordError
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.data.tokenized import DroppedRow
from sft_jax.data.tokenized.example_store import ExampleStoreWriter, open_examples
from sft_jax.data.tokenizing import streaming
from sft_jax.data.tokenizing.streaming import Work, chunked, write_examples
from sft_jax.data.tokenizing.workers import WorkerError, Workers, tokenized_chunks, worker_count


@pytest.fixture(scope="module")
def renderer(chatml_tokenizer):
    return ConversationRenderer(chatml_tokenizer)


@pytest.fixture
def records(chat):
    answers = ["a", "b" * 200, "the <|im_end|> c", "é漢", "x" * 7]
    made = [
        Record(f"t:{n}", Chat(chat(f"user: {n}", f"assistant: {answers[n % 5]}")), {}, group=str(n % 3))
        for n in range(60)
    ]
    return [*made[:5], DroppedRow("t:gone", "cleaned"), *made[5:]]


@pytest.fixture
def chunks(records):
    return [records[start : start + 10] for start in range(0, len(records), 10)]


def arrays(parts):
    examples = [part.examples for part in parts]
    return [
        np.concatenate([getattr(example, name) for example in examples]).tolist()
        for name in ("tokens", "weights", "lengths")
    ]


def test_the_number_of_workers_changes_nothing(chunks, renderer):
    alone = list(tokenized_chunks(chunks, renderer, 150))
    helped = list(tokenized_chunks(chunks, renderer, 150, workers=2, alone_seconds=0))
    assert arrays(helped) == arrays(alone)
    for name in ("dropped", "counts"):
        assert [getattr(part, name) for part in helped] == [getattr(part, name) for part in alone]
    assert [list(part.examples.ids) for part in helped] == [list(part.examples.ids) for part in alone]


def test_what_is_done_soon_starts_no_worker(chunks, renderer, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a worker was started"))
    assert len(list(tokenized_chunks(chunks, renderer, 150, workers=2, alone_seconds=600))) == 7


def test_errors_name_their_record(chat, renderer):
    bad = [Record("t:7", Chat(chat("user: a", "assistant: b")), {}, weight=-1.0)]
    for workers in (0, 1):
        with pytest.raises(RecordError, match="t:7: the weight of a row must be finite and not negative, got -1"):
            list(tokenized_chunks([bad], renderer, 99, workers, alone_seconds=0))


def test_a_killed_worker_is_an_error(chunks, renderer):
    with Workers(2, renderer, 150) as pool:
        answers = pool.map(chunks * 100)
        next(answers)
        os.kill(pool.process_ids[0], signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"killed by SIGKILL between rows t:\d+ and t:\d+.*give fewer") as error:
            list(answers)
    said = re.search(r"--config\.loader\.tokenize_workers=(\d), or (\d): none", str(error.value))
    alone = list(tokenized_chunks(chunks, renderer, 150))
    for workers in map(int, said.groups()):
        assert arrays(list(tokenized_chunks(chunks, renderer, 150, workers, alone_seconds=0))) == arrays(alone)


_INTERRUPTED = """
import pickle, signal, sys
from sft_jax.data.tokenizing.workers import Workers

signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may run where it is ignored, as behind "&"
renderer, chunk = pickle.loads(bytes.fromhex(sys.stdin.read()))
with Workers(2, renderer, 150) as pool:
    answers = pool.map(chunk for _ in range(10**9))
    next(answers)
    print(*pool.process_ids, flush=True)
    for _ in answers:
        pass
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_the_one_that_started_it(how, records, renderer):
    task = pickle.dumps((renderer, records[:9])).hex()
    process = subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
        start_new_session=True,
    )
    process.stdin.write(task)
    process.stdin.close()
    workers = process.stdout.readline().split()
    assert len(workers) == 2, process.stderr.read()
    ended = [os.pidfd_open(int(worker)) for worker in workers]
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as the terminal does
    else:
        process.send_signal(how)
    process.wait()
    for worker in ended:  # one that outlives the process is waited for, and faulthandler shows where
        select.select([worker], [], [])
        os.close(worker)
    assert how != signal.SIGINT or "KeyboardInterrupt" in process.stderr.read()


def test_workers_are_free_of_jax():
    code = "import sys, sft_jax.data.tokenizing.worker; print('jax' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.stdout == "False False\n"


def test_worker_count():
    assert worker_count(0) == 0
    assert worker_count(5) == 5
    assert 1 <= worker_count(-1) <= 16


def test_chunks_are_small(chat):
    long, short = (Record("t", Chat(chat(f"user: {'x' * size}")), {}) for size in (400_000, 1))
    assert [len(chunk) for chunk in chunked([short] * 600)] == [256, 256, 88]
    assert [len(chunk) for chunk in chunked([long] * 5)] == [2, 2, 1]
    assert list(chunked([])) == []


def test_examples_of_a_stream_are_all_accounted_for(tmp_path, records, renderer):
    with ExampleStoreWriter(tmp_path) as writer:
        write_examples(writer, iter(records), renderer, 150)
        writer.finish({}, {})
    found = open_examples(tmp_path)
    assert (found.counts.records, found.counts.kept, found.counts.dropped) == (61, 48, 13)
    assert len(found.examples) == 48
    assert len(found.dropped) == 13
    assert found.dropped[1] == DroppedRow("t:gone", "cleaned")


@pytest.mark.parametrize("workers", [0, 2])
def test_how_far_it_is_and_how_fast(tmp_path, records, renderer, monkeypatch, workers):
    """The share is that of the records done, not of those that were read ahead for the workers."""
    monkeypatch.setattr(streaming, "tokenized_chunks", functools.partial(tokenized_chunks, alone_seconds=0))
    monkeypatch.setattr(streaming, "RECORDS_PER_CALL", 10)
    read, seen = [], []

    def reading():
        for record in records:
            read.append(record)
            yield record

    share = lambda: len(read) / len(records)
    with ExampleStoreWriter(tmp_path) as writer:
        work = write_examples(writer, reading(), renderer, 150, workers, seen.append, share)
        assert work.tokens == writer.tokens > 0
    assert [each.records for each in seen] == [0, 10, 20, 30, 40, 50, 60, 61]
    assert [each.share for each in seen] == [each.records / 61 for each in seen]
    assert (work.records, work.share, work.workers) == (61, 1.0, workers)
    assert [each.workers for each in seen[1:]] == [workers] * 7


def test_speed_in_words():
    assert Work(10, 2000, 2.0, 3, None).speed() == "5 records/s, 1,000 tokens/s"
