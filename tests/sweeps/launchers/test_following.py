"""What a person sees of a sweep in progress."""

import io
import json

import pytest
from rich.console import Console

from sft_jax import progress
from sft_jax.sweeps.launchers import following
from sft_jax.sweeps.launchers.following import Following, MetricsTail


class Clock:
    """Seconds that the test lets pass."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(following, "time", made)
    monkeypatch.setattr(progress, "time", made)
    return made


def write(path, *lines, mode="w"):
    path.parent.mkdir(exist_ok=True)
    with path.open(mode) as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))


def test_the_end_of_the_metrics(tmp_path):
    path, tail = tmp_path / "metrics.jsonl", MetricsTail(tmp_path)
    assert tail.latest() == (0, None)
    write(path, {"step": 0, "held_out/loss": 3.0})
    assert tail.latest() == (0, None)
    write(path, {"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": 1.5}, mode="a")
    assert tail.latest() == (2, 1.5)
    with path.open("a") as file:
        file.write('{"step": 3, "train/lo')  # torn
    assert tail.latest() == (2, 1.5)
    write(path, {"step": 1, "train/loss": None})  # a run that goes on is cut back; not finite is null
    assert tail.latest() == (1, None)


def test_only_the_end_is_read_and_only_where_it_changed(tmp_path, monkeypatch):
    path, tail = tmp_path / "metrics.jsonl", MetricsTail(tmp_path)
    write(path, *({"step": step, "train/loss": 1.0, "more": "x" * 1000} for step in range(1, 1001)))
    read = []
    json_loads = json.loads
    monkeypatch.setattr(following.json, "loads", lambda text: read.append(len(text)) or json_loads(text))
    assert tail.latest() == (1000, 1.0)
    assert sum(read) < 1 << 15
    read.clear()
    assert tail.latest() == (1000, 1.0)
    assert read == []


def test_lines_where_there_is_no_terminal(tmp_path, clock):
    console = Console(file=io.StringIO(), width=200)
    names = ["lr=1-aa", "lr=2-bb", "lr=3-cc"]
    with Following(tmp_path, names, 1, 2, console) as shown:
        shown.started("lr=1-aa")
        shown.started("lr=2-bb")
        shown.counted("lr=1-aa", 10)
        shown.tick()
        write(tmp_path / "lr=1-aa" / "metrics.jsonl", {"step": 5, "train/loss": 0.25})
        clock.now = 30.0
        shown.tick()
        shown.ended("lr=2-bb", "failed", "bad things\nValueError: [no] such column", again=True)
        clock.now = 50.0
        shown.ended("lr=1-aa", "finished", None, again=False)
    assert console.file.getvalue().splitlines() == [
        "lr=1-aa: started",
        "lr=2-bb: started",
        "1 of 4 done, 2 running, 1 waiting  ETA ?: lr=1-aa 5/10; lr=2-bb 0/?",
        "lr=2-bb: failed at step 0: ValueError: [no] such column; it has another attempt",
        "lr=1-aa: finished at step 5  loss 0.2500",
    ]


def test_the_time_that_is_left(tmp_path, clock):
    """10 runs of 100 s by two workers: by the pace of those in progress, then by how long others took."""
    console = Console(file=io.StringIO(), width=200)
    names = [f"lr={number}" for number in range(10)]
    with Following(tmp_path, names, 0, 2, console) as shown:
        for name in names[:2]:
            shown.started(name)
            shown.counted(name, 100)
        shown._look()
        assert shown.summary() == "0 of 10 done, 2 running, 8 waiting  ETA ?"
        for step in (10, 50):  # a second each; the first steps that are seen had to be compiled
            clock.now = float(step)
            for name in names[:2]:
                write(tmp_path / name / "metrics.jsonl", *({"step": n, "train/loss": 1.0} for n in range(step + 1)))
            shown.summary()
            shown._look()
            shown.summary()
        assert shown.summary() == "0 of 10 done, 2 running, 8 waiting  ETA 0:07:30"  # 50 s, and 8 x 100 s by two
        clock.now = 100.0
        for name in names[:2]:
            shown.ended(name, "finished", None, again=False)
        assert shown.summary() == "2 of 10 done, 0 running, 8 waiting  ETA 0:06:40"


def test_the_table_fits_the_screen(tmp_path, clock):
    """Of hundreds of runs those in progress, the last that ended and the next are shown."""
    console = Console(file=io.StringIO(), force_terminal=True, width=60, height=16)
    names = [f"learning_rate={number},seed=0-{number:08x}" for number in range(300)]
    with Following(tmp_path, names, 0, 3, console) as shown:
        for name in names[:100]:
            shown.started(name)
            shown.ended(name, "finished", None, again=False)
        for name in names[100:103]:
            shown.started(name)
            shown.counted(name, 10)
            write(tmp_path / name / "metrics.jsonl", {"step": 4, "train/loss": 0.5})
        shown._look()
        with console.capture() as captured:
            console.print(shown._table())
            console.print(shown.summary(), highlight=False)
    text = captured.get()
    assert len(text.splitlines()) <= 16
    assert all(name[-8:] in text for name in names[100:103])
    assert text.count("4/10") == text.count("0.5000") == 3
    assert "100 of 300 done, 3 running, 197 waiting" in text


def test_a_terminal_shows_a_live_table(tmp_path, clock):
    console = Console(file=io.StringIO(), force_terminal=True, width=60, height=16)
    with Following(tmp_path, ["lr=1", "lr=2"], 0, 1, console) as shown:
        shown.started("lr=1")
        clock.now = 1.0
        shown.tick()
        shown.stopping("leaving")
        clock.now = 2.0
        shown.tick()
    output = console.file.getvalue()
    assert "lr=1" in output
    assert "waiting" in output
    assert "0 of 2 done, 1 running, 1 waiting" in output
    assert "leaving" in output
