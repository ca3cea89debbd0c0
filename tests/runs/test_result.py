"""`result.json`: what is written is read, damage is named, and every end of a run has its own."""

import json
import math
import os
import signal

import pytest

import tests.training.poison  # noqa: F401  registers its objectives
from sft_jax.runs.metric_log import read_metrics
from sft_jax.runs.result import RunEnd, read_result, write_result
from sft_jax.runs.workdir import WorkdirError
from sft_jax.training import run
from sft_jax.training.recorder import DivergedError
from tests import tiny
from tests.training.moments import at

END = RunEnd(
    state="finished",
    step=4,
    total_steps=4,
    metrics={"held_out/nll": 1.5, "train/loss": math.nan},
    best={"step": 2, "metric": "held_out/nll", "metrics": {"held_out/nll": 1.25}},
    counters={"examples": 12, "epochs": 0.5},
    seconds=2.5,
    peak_memory_bytes=None,
    error=None,
)


def test_what_is_written_is_read(tmp_path):
    assert read_result(tmp_path) is None
    write_result(tmp_path, END)
    assert json.loads((tmp_path / "result.json").read_text())["metrics"] == {"held_out/nll": 1.5, "train/loss": None}
    found = read_result(tmp_path)
    assert math.isnan(found.metrics["train/loss"])
    assert found.best == END.best
    assert (found.state, found.step, found.counters, found.done) == ("finished", 4, END.counters, True)


@pytest.mark.parametrize("text", ["{", "[]", '{"state": "finished"}', None])
def test_damage_is_named(text, tmp_path):
    write_result(tmp_path, END)
    path = tmp_path / "result.json"
    path.write_text(path.read_text().replace("finished", "over") if text is None else text)
    with pytest.raises(WorkdirError, match=r"result\.json is damaged .*Remove it, and start the same run again"):
        read_result(tmp_path)


def test_a_finished_run_says_so_and_keeps_it(tmp_path):
    """What it says is what its log says; one whose process was killed before it was written gets it afterwards."""
    config = tiny.config(tmp_path, **{"duration": "4 steps", "evaluation.every": "2 steps"})
    result = run(config, tmp_path / "run")
    found, lines = read_result(tmp_path / "run"), read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert (found.state, found.step, found.total_steps, found.error) == ("finished", 4, 4, None)
    assert found.metrics["held_out/nll"] == lines[-1]["held_out/nll"] == result.metrics["held_out/nll"]
    assert found.metrics["train/loss"] == lines[-1]["train/loss"]
    best = min((line for line in lines if "held_out/nll" in line), key=lambda line: line["held_out/nll"])
    assert (found.best["step"], found.best["metric"]) == (best["step"], "held_out/nll")
    assert found.best["metrics"]["held_out/loss"] == best["held_out/loss"]
    for name in ("examples", "tokens", "supervised_tokens", "epochs"):
        assert found.counters[name] == lines[-1][f"progress/{name}"], name
    assert found.counters["trained_parameters"] == 320 * 32 + 32 + 2 * (
        2 * 32 + 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48
    )
    assert found.seconds == pytest.approx(sum(line["speed/seconds_per_step"] for line in lines[1:]))
    path = tmp_path / "run" / "result.json"
    text, since = path.read_text(), path.stat().st_mtime_ns
    run(config, tmp_path / "run")
    assert path.stat().st_mtime_ns == since
    path.unlink()
    run(config, tmp_path / "run")
    assert path.read_text() == text


def test_runs_that_end_otherwise(tmp_path):
    """By a signal, early, or by an error of theirs; and a run that goes on forgets how it ended before."""
    settings = {"duration": "4 steps", "evaluation.every": "1 steps"}
    config = tiny.config(tmp_path, **settings)
    with pytest.MonkeyPatch.context() as patch:
        at("dispatch", 2, lambda: os.kill(os.getpid(), signal.SIGTERM), patch.setattr)
        run(config, tmp_path / "signal")
    found = read_result(tmp_path / "signal")
    assert (found.state, found.step, found.total_steps, found.done) == ("interrupted", 2, 4, False)
    with pytest.MonkeyPatch.context() as patch:

        def look():
            assert read_result(tmp_path / "signal") is None
            raise OSError("no space left")

        at("before save", 4, look, patch.setattr)
        with pytest.raises(OSError, match="no space left"):
            run(config, tmp_path / "signal")
    found = read_result(tmp_path / "signal")
    assert (found.state, found.step, found.error) == ("failed", 4, "OSError: no space left")
    assert run(config, tmp_path / "signal").step == 4
    assert read_result(tmp_path / "signal").state == "finished"

    early = tiny.config(tmp_path, **settings | {"checkpoint.best_is": "max", "evaluation.patience": 1})
    run(early, tmp_path / "early")
    found = read_result(tmp_path / "early")
    assert (found.state, found.step, found.done, found.best["step"]) == ("stopped_early", 1, True, 0)

    poisoned = {"objective.name": "always poisoned", "optimizer.max_skipped_in_a_row": 2, "data.held_out": ""}
    with pytest.raises(DivergedError):
        run(tiny.config(tmp_path, **settings | poisoned), tmp_path / "diverged")
    found = read_result(tmp_path / "diverged")
    assert (found.state, found.step, found.done, found.best) == ("diverged", 2, False, None)
    assert found.error.startswith("DivergedError: 2 steps in a row, up to step 2")


def test_what_is_refused_before_a_directory_is_claimed_leaves_none(tmp_path):
    with pytest.raises(ValueError, match="is not measured"):
        run(tiny.config(tmp_path, **{"checkpoint.best_metric": "none/such"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
