"""The files of a report."""

import json

import pytest

from sft_jax.evaluation.report.write import log_report, write_report
from sft_jax.runs.metric_log import read_metrics
from tests.evaluation.report.made_results import EVIL, everything, results_of, rows, task


def test_the_files(tmp_path):
    answers = {"extraction": {"sft": rows(["a"])}}
    paths = write_report(everything(), answers, tmp_path / "new" / "report")
    names = [str(path.relative_to(tmp_path / "new" / "report")) for path in paths]
    assert names == [
        *("results.json", "report.md", "report.html"),
        *(f"plots/task_extraction_{part}.png" for part in ("scores", "cost", "differences")),
        *(f"plots/forgetting_arithmetic_{part}.png" for part in ("scores", "differences")),
        "plots/drift.png",
    ]
    assert sorted(path for path in (tmp_path / "new").rglob("*") if path.is_file()) == sorted(paths)
    assert json.loads(paths[0].read_text()) == everything()
    for name in names[3:]:
        assert f"]({name})\n" in paths[1].read_text()
    assert paths[2].read_text().count("data:image/png;base64,") == 6


def test_writing_again_changes_nothing(tmp_path):
    before = {path: (path.read_bytes(), path.stat().mtime) for path in write_report(everything(), {}, tmp_path)}
    after = {path: (path.read_bytes(), path.stat().mtime) for path in write_report(everything(), {}, tmp_path)}
    assert after == before


def test_text_that_no_file_can_hold(tmp_path):
    results = results_of({EVIL: "base"}, {EVIL: task({EVIL: 0.5})})
    results_file, *_ = write_report(results, {EVIL: {EVIL: rows([EVIL], EVIL)}}, tmp_path)
    assert json.loads(results_file.read_text()) == results


def test_numbers_that_json_cannot_hold_are_refused_and_nothing_is_written(tmp_path):
    results = results_of({"base": "base"}, {"t": task({"base": float("nan")})})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(results, {}, tmp_path / "report")
    assert list(tmp_path.iterdir()) == []


def test_the_log_for_tensorboard(tmp_path):
    """Twice: what was there before is replaced."""
    for step in (3, 7):
        log_report(everything(), tmp_path, step)
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert line["step"] == 7
    assert {name for name in line if name.startswith("evaluation/")}
    assert list(tmp_path.glob("events*"))
