"""A run that is left after a step and gone on with is the run that nobody left."""

import json

import jax
import numpy as np
import pytest
from rich.console import Console

from sft_jax.runs.result import PAUSED, read_result
from sft_jax.training import run
from tests import tiny

QUIET = Console(quiet=True)


def log_of(workdir):
    """All that is logged but times."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timed = ("speed/", "time/")
    return [{name: value for name, value in line.items() if not name.startswith(timed)} for line in lines]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny.config(tmp_path_factory.mktemp("tiny"), "lora", **{"adapter.dropout": 0.1})


def test_a_paused_run_goes_on_as_if_it_had_not_been(config, tmp_path):
    """At an evaluation, as a search asks for: the log has no line more and none less, to the last bit."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finished = run(config, whole, console=QUIET)
    paused = run(config, parts, console=QUIET, stop_after=3)
    assert (paused.step, paused.paused, paused.interrupted, paused.stopped_early) == (3, True, None, False)
    end = read_result(parts)
    assert (end.state, end.step, end.total_steps, end.done) == (PAUSED, 3, 6, False)
    assert end.metrics["held_out/nll"] == paused.metrics["held_out/nll"] == log_of(whole)[3]["held_out/nll"]
    assert log_of(parts) == log_of(whole)[:4]
    again = run(config, parts, console=QUIET)
    assert (again.step, again.paused) == (6, False)
    assert log_of(parts) == log_of(whole)
    assert again.metrics == finished.metrics
    assert read_result(parts).done


def test_a_run_that_is_there_already_takes_no_step(config, tmp_path, monkeypatch):
    run(config, tmp_path / "run", console=QUIET, stop_after=3)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    monkeypatch.setattr("sft_jax.training.loop.init_state", lambda *_: pytest.fail("weights are read"))
    for step in (1, 3):
        result = run(config, tmp_path / "run", console=QUIET, stop_after=step)
        assert (result.step, result.paused) == (3, True)
        assert np.isfinite(result.metrics["held_out/nll"])
        assert read_result(tmp_path / "run").state == PAUSED
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_beyond_its_end_a_run_is_finished(config, tmp_path):
    for step in (6, 7):
        result = run(config, tmp_path / str(step), console=QUIET, stop_after=step, devices=jax.devices()[:1])
        assert (result.step, result.paused, read_result(tmp_path / str(step)).done) == (6, False, True)
