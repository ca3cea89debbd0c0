"""Progress where the output is no terminal: plain lines, not too many; a bar where it is one."""

import io

import pytest
from rich.console import Console

from sft_jax import progress
from sft_jax.data.tokenizing.streaming import Work


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when the test says so."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines(clock):
    out = io.StringIO()
    with progress.ProgressBar("training", 100, done=20, console=Console(file=out, width=40)) as bar:
        for done in range(21, 101):
            clock[0] += 1.0
            bar.update(done, f"loss {done / 100:.2f}")
    lines = out.getvalue().splitlines()
    assert lines[0] == "training 30/100 loss 0.30 ETA 0:01:10"
    assert lines[-1] == "training 100/100 loss 1.00 ETA 0:00:00"
    assert len(lines) == 8


@pytest.mark.parametrize("first", [0, 40])
def test_the_first_step_compiles_and_does_not_count(clock, first):
    """300 s for the first step, 2 s for each that follows: the ETA is theirs, also after a resume and on a terminal."""
    for terminal in (False, True):
        out = io.StringIO()
        console = Console(file=out, width=120, force_terminal=terminal)
        with progress.ProgressBar("training", 100, done=first, console=console) as bar:
            bar.update(first, "evaluating 1/2", within=True)
            clock[0] += 300.0
            bar.update(first + 1, "compiled")
            clock[0] += 2.0
            bar.update(first + 2, "two")
            clock[0] += 16.0
            bar.update(first + 10, "ten")
        shown = out.getvalue()
        assert f"ETA 0:{3 if first == 0 else 1:02d}:{0 if first == 0 else 40:02d}" in shown
        assert "0:05" not in shown.replace("0:05:18", ""), "the time that has passed may be shown"
        if not terminal:
            assert shown.splitlines() == [
                f"training {first + 1}/100 compiled ETA ?",
                f"training {first + 10}/100 ten ETA 0:0{3 if first == 0 else 1}:{'00' if first == 0 else '40'}",
            ]


def test_an_evaluation_counts_as_often_as_there_was_one(clock):
    """Steps of 1 s, every fifth with an evaluation of 10 s: 29 s for the 9 after the first, and so on."""
    out = io.StringIO()
    with progress.ProgressBar("training", 111, console=Console(file=out, width=120)) as bar:
        for step in range(1, 12):
            clock[0] += 100.0 if step == 1 else 1.0
            bar.update(step)
            if step in (5, 10):
                clock[0] += 10.0
                bar.update(step, "evaluating 1/1", within=True)
        clock[0] += 9.0
        bar.update(20)
    assert out.getvalue().splitlines()[-2:] == [
        "training 10/111 evaluating 1/1 ETA 0:05:25",
        "training 20/111 ETA 0:03:07",
    ]


def test_the_last_of_all_has_nothing_left(clock):
    """One batch of answers, or one step: done with the first."""
    out = io.StringIO()
    with progress.ProgressBar("generating", 8, console=Console(file=out, width=40)) as bar:
        clock[0] += 60.0
        bar(8, 8)
    assert out.getvalue() == "generating 8/8 ETA 0:00:00\n"


def test_a_share(clock):
    """With an estimate of the time that is left; none where nobody knows the share."""
    out = io.StringIO()
    with progress.ProgressBar("tokenizing", None, console=Console(file=out, width=40)) as bar:
        for share in (0.0, 0.25, None):
            clock[0] += 10.0
            bar.update(share, "9 records/s", within=True)
        bar.update(1.0, "9 records/s")
        bar.update(None, "7 records/s")
    assert out.getvalue().splitlines() == [
        "tokenizing 0% 9 records/s ETA ?",
        "tokenizing 25% 9 records/s ETA 0:01:00",
        "tokenizing 9 records/s",
        "tokenizing 100% 9 records/s ETA 0:00:00",
        "tokenizing 7 records/s",
    ]


def test_an_unknown_number(clock):
    out = io.StringIO()
    with progress.ProgressBar("reading", 0, console=Console(file=out, width=40)) as bar:
        clock[0] += 10.0
        bar(50, 0)
    assert out.getvalue() == "reading 50 5/s\n"


def test_a_share_on_a_terminal():
    out = io.StringIO()
    with progress.ProgressBar("tokenizing", None, console=Console(file=out, force_terminal=True, width=100)) as bar:
        bar.update(None, "1 records/s", within=True)
        bar.update(0.25, "9 records/s", within=True)
    assert "25%" in out.getvalue()


def test_other_processes_print_nothing(clock):
    out = io.StringIO()
    with progress.ProgressBar("training", 3, console=Console(file=out), enabled=False) as bar:
        bar.update(3)
    assert out.getvalue() == ""


def test_a_bar_on_a_terminal():
    out = io.StringIO()
    with progress.ProgressBar("training", 3, console=Console(file=out, force_terminal=True, width=100)) as bar:
        bar.update(2, "loss 0.5")
    assert "2/3" in out.getvalue()
    assert "loss 0.5" in out.getvalue()
    assert "ETA" in out.getvalue()


@pytest.mark.parametrize(
    ("title", "total", "done", "note"),
    [
        ("tokenizing", None, 0.0823, Work(8_000_000, 8 * 10**8, 648.0, 2, 0.0823).speed()),
        ("training", 1000, 82, "loss 0.5123  2,461 tok/s  (623 supervised)"),
    ],
)
def test_speed_and_eta_fit_into_a_narrow_terminal(title, total, done, note):
    out = io.StringIO()
    with progress.ProgressBar(title, total, console=Console(file=out, force_terminal=True, width=80)) as bar:
        bar.update(done, note)
    assert note in out.getvalue()
    assert "…" not in out.getvalue()
