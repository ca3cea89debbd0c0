"""Two runs side by side: configs, ends, curves, and what they make of the same rows."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from sft_jax.evaluation.scoring import compare
from sft_jax.runs.workdir import WorkdirError
from sft_jax.sweeps.report.comparing import compare_runs, comparison_sections, terminal_comparison, write_comparison
from tests.parsed_page import Parsed
from tests.sweeps import written

RANK = "adapter.rank"


@pytest.fixture
def pair(tmp_path):
    """Two runs that differ in their rank, with a task of 50 rows each."""
    names = written.write_sweep(tmp_path, {"optimizer.learning_rate": [1e-3], RANK: [4, 8], "seed": [0]})
    rng = np.random.default_rng(0)
    right = [rng.random(50) < share for share in (0.4, 0.8)]
    for name, answers in zip(names, right, strict=True):
        written.write_evaluation(tmp_path / name, 0, "yes_or_no", np.zeros(50, bool))  # not the last: not looked at
        written.write_evaluation(tmp_path / name, written.STEPS, "yes_or_no", answers)
    return [tmp_path / name for name in names], right


def test_what_differs_and_how_they_ended(pair):
    found = compare_runs(*pair[0], "steps").found
    assert list(found["runs"]) == ["rank=4", "rank=8"]
    assert found["config"] == [{"field": RANK, "rank=4": 4, "rank=8": 8}]
    assert found["runs"]["rank=8"]["costs"]["tokens"] == written.STEPS * written.TOKENS_A_STEP
    overrides = {"optimizer.learning_rate": 1e-3, "seed": 0}
    expected = {f"rank={rank}": written.loss_of({**overrides, RANK: rank}, written.STEPS) for rank in (4, 8)}
    assert found["metrics"]["held_out/nll"] == pytest.approx(expected)


def test_rows_are_paired(pair):
    directories, right = pair
    comparison = compare_runs(*directories, "steps")
    task = comparison.found["tasks"]["yes_or_no"]
    ((first, second),) = [[[{"exact_match": bool(one)} for one in of_run] for of_run in right]]
    expected = compare(first, second, 0)["exact_match"]
    (found,) = task["comparisons"]
    assert (found["value"], found["p_value"]) == (expected.difference.value, expected.p_value)
    (section,) = [one for one in comparison_sections(comparison) if one.title == "yes_or_no"]
    differ = int((right[0] != right[1]).sum())
    assert section.tables[-1].title.startswith(f"Rows where exact match differs: {differ} of 50")
    assert len(section.tables[-1].rows) == min(differ, 20)
    first = int(np.flatnonzero(right[0] != right[1])[0])
    assert section.tables[-1].rows[0][0] == f"rows.jsonl:{first + 1}"


def test_rows_that_only_one_has_are_left_out_and_said(pair):
    directories, _ = pair
    path = directories[1] / "evaluations" / str(written.STEPS) / "yes_or_no.json"
    kept = json.loads(path.read_text())
    kept["lines"][0]["id"] = "elsewhere:1"
    kept["lines"][1]["reference"] = "another"  # the same place of another file
    path.write_text(json.dumps(kept))
    found = compare_runs(*directories, "steps").found
    assert found["tasks"]["yes_or_no"]["examples"] == 48
    assert found["notes"] == ["yes_or_no: compared on the 48 rows that both have."]
    path.unlink()
    (directories[1] / "evaluations" / "0" / "yes_or_no.json").unlink()
    found = compare_runs(*directories, "steps").found
    assert found["tasks"] == {}
    assert found["notes"] == ["yes_or_no: only one of the two was measured by it."]


def test_predictions_of_evaluations_are_paired_too(pair):
    directories, right = pair
    for directory, answers in zip(directories, right, strict=True):
        folder = directory / "evaluation" / "predictions" / "titles"
        folder.mkdir(parents=True)
        row = {"prompt": "?", "reference": "yes", "finish_reason": "stop", "group": ""}
        lines = [
            json.dumps({"id": str(number), "answer": str(one), "outcome": {"exact_match": bool(one)}} | row)
            for number, one in enumerate(answers)
        ]
        (folder / "sft.jsonl").write_text("\n".join(lines) + "\n")
    found = compare_runs(*directories, "steps").found
    assert list(found["tasks"]) == ["yes_or_no", "evaluation: titles, sft"]
    assert found["tasks"]["evaluation: titles, sft"]["comparisons"][0]["p_value"] < 0.05


def test_files_and_terminal(pair, tmp_path):
    comparison = compare_runs(*pair[0], "tokens")
    page = Parsed(write_comparison(comparison, tmp_path / "out").read_text())
    assert sorted(path.name for path in (tmp_path / "out" / "plots").iterdir()) == [
        *("held_out_loss.png", "held_out_nll.png", "train_loss.png"),
    ]
    rows = json.loads(page.scripts[0])["tasks"][0]["rows"]
    assert sum(row["disagree"] for row in rows) == int((pair[1][0] != pair[1][1]).sum())
    assert "adapter.rank" in page.text
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == comparison.found
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal_comparison(comparison))
    shown = console.export_text()
    assert "adapter.rank" in shown
    assert "rank=8, exact match: better than rank=4" in shown
    assert len(shown.splitlines()) < 80


def test_runs_that_are_not_at_their_end(tmp_path):
    names = written.write_sweep(tmp_path, {RANK: [4, 8], "seed": [0]}, unlike={0: "running", 1: "diverged"})
    comparison = compare_runs(*(tmp_path / name for name in names), "steps")
    assert [run["state"] for run in comparison.found["runs"].values()] == ["running", "diverged"]
    assert len(comparison.plots) == 3
    assert "5 steps in a row had no finite loss" in str(comparison_sections(comparison))


def test_directories_that_are_no_two_runs(pair, tmp_path):
    (first, _), _ = pair
    with pytest.raises(WorkdirError, match="is not a run directory"):
        compare_runs(first, tmp_path, "steps")
    with pytest.raises(WorkdirError, match="are the same run"):
        compare_runs(first, first, "steps")
