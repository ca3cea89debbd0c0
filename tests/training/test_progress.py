"""Progress where the output is no terminal: plain lines, not too many; a bar where it is one."""

import io

import pytest
from rich.console import Console

from sft_jax.training import progress


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
