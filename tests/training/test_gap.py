"""The gap between held-out and training loss, by hand, and as a run logs it."""

import pytest

from sft_jax.runs.metric_log import read_metrics
from sft_jax.training import run
from sft_jax.training.gap import Gap
from tests import tiny


def line(loss, weight, skipped=0.0, **more):
    return {"train/loss": loss, "train/loss_weight": weight, "train/skipped": skipped} | more


def test_by_hand():
    """The docstring's; a skipped step, and one before the last evaluation, do not count."""
    gap = Gap([line(9.0, 50.0, **{"held_out/loss": 3.0}), line(2.0, 10.0), line(None, 20.0, skipped=1.0)])
    assert gap.at(line(1.0, 30.0), {"held_out/loss": 1.5}) == {"held_out/gap": pytest.approx(0.25)}
    assert gap.at(line(1.0, 30.0), {"mine/score": 1.5}) == {}
    gap.add(line(1.0, 30.0) | {"held_out/loss": 1.5})
    assert gap.at(line(float("nan"), 30.0, skipped=1.0), {"held_out/loss": 1.5}) == {}, "there was no good step"


def test_a_run_logs_it(tmp_path):
    """At steps 3 and 6, from the three steps before each, and beside the counters; not before the first step."""
    result = run(tiny.config(tmp_path), tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [entry["step"] for entry in lines if "held_out/gap" in entry] == [3, 6]
    for last in (3, 6):
        steps = lines[last - 2 : last + 1]
        weight = sum(entry["train/loss_weight"] for entry in steps)
        mean = sum(entry["train/loss"] * entry["train/loss_weight"] for entry in steps) / weight
        assert lines[last]["held_out/gap"] == pytest.approx(lines[last]["held_out/loss"] - mean, rel=1e-9)
        before = lines[last - 3].get("progress/supervised_tokens", 0)
        assert lines[last]["progress/supervised_tokens"] - before == weight
    assert result.metrics["held_out/gap"] == lines[6]["held_out/gap"]
