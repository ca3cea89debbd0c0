"""Further metrics of a report, and a report inside a text of somebody's."""

import csv
import json
import re

import numpy as np
import pytest
from scipy import stats

from sft_jax.sweeps.report.analysis import analyse
from sft_jax.sweeps.report.curves import curves_of
from sft_jax.sweeps.report.embedding import MARKS, MarksError, check_marks, embed
from sft_jax.sweeps.report.plots import draw_sweep
from sft_jax.sweeps.report.quantities import LOGGED, USUAL, QuantityError, quantity_of
from sft_jax.sweeps.report.reading import read_runs
from sft_jax.sweeps.report.sections import settings_table
from sft_jax.sweeps.report.terminal import terminal_report
from sft_jax.sweeps.report.write import write_sweep_report
from tests.sweeps import written

BEGIN, END = MARKS

ACCURACY = "held_out/accuracy"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweeps") / "sweep"
    written.write_sweep(root, unlike={11: "running"})
    return root


def report_with(root, *also):
    runs = read_runs(root, {*also, *LOGGED, *USUAL})
    quantity = quantity_of(runs, "", "final", None)
    others = [quantity_of(runs, name, "final", None, flag="also") for name in also]
    return analyse(runs, quantity, None, others), curves_of(runs, quantity, "steps")


def plots_of(found, curves):
    return draw_sweep(found, curves, "steps")


def test_another_metric_is_the_mean_of_the_runs_that_count(sweep):
    """Student's t over seeds; the run that goes on has no value yet, of either."""
    found, _ = report_with(sweep, ACCURACY)
    assert found["also"] == [ACCURACY]
    for setting in found["settings"]:
        done = [run for run in setting["runs"] if run["value"] is not None]
        values = [run["also"][ACCURACY] for run in done]
        assert values == pytest.approx(np.exp(-np.array([run["value"] for run in done])))
        score = setting["also"][ACCURACY]
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert [score["value"], score["low"], score["high"]] == pytest.approx([np.mean(values), low, high])
    (last,) = [run for run in found["settings"][-1]["runs"] if run["value"] is None]
    assert last["also"] == {ACCURACY: None}
    assert [len([run for run in one["runs"] if run["value"] is not None]) for one in found["settings"]] == [3, 3, 3, 2]


def test_it_is_shown_everywhere(sweep, tmp_path):
    from rich.console import Console

    found, curves = report_with(sweep, ACCURACY)
    table = settings_table(found)
    assert table.columns[table.columns.index("held_out/nll") + 1] == ACCURACY
    cell = table.rows[0][table.columns.index(ACCURACY)]
    assert re.fullmatch(r"0\.\d+ \[0\.\d+, 0\.\d+\]", cell)
    assert all(len(row) == len(table.columns) for row in table.rows)
    plots = {plot.name for plot in plots_of(found, curves)}
    assert "beside_held_out_accuracy" in plots
    assert "beside_held_out_accuracy" not in {plot.name for plot in plots_of(*report_with(sweep))}
    paths = write_sweep_report(found, [], tmp_path)
    (setting, *_), (run, *_) = (list(csv.DictReader(paths[name].open())) for name in ("settings.csv", "runs.csv"))
    assert float(setting[ACCURACY]) == pytest.approx(found["settings"][0]["also"][ACCURACY]["value"])
    assert float(run[ACCURACY]) == pytest.approx(found["settings"][0]["runs"][0]["also"][ACCURACY])
    assert json.loads(paths["report.json"].read_text()) == found
    console = Console(width=200, record=True, file=(tmp_path / "terminal").open("w"))
    console.print(terminal_report(found))
    assert ACCURACY in console.export_text()


def test_a_metric_that_there_is_not(sweep):
    with pytest.raises(QuantityError, match=r"--also=held_out/acuracy is in no run of .*; there are held_out/accuracy"):
        report_with(sweep, "held_out/acuracy")


def test_what_stands_between_the_marks_is_replaced(sweep, tmp_path):
    text = tmp_path / "README.md"
    text.write_text(f"# A question\n\nBefore.\n\n{BEGIN}\nNot measured.\n{END}\n\nBehind.\n", encoding="utf-8")
    found, curves = report_with(sweep, ACCURACY)
    embed(found, plots_of(found, curves), str(text))
    made = text.read_text()
    assert made.startswith(f"# A question\n\nBefore.\n\n{BEGIN}\n")
    assert made.endswith(f"\n{END}\n\nBehind.\n")
    assert "Not measured." not in made
    for row in settings_table(found).rows:
        assert f"| {' | '.join(row)} |".replace("_", "\\_").split("|")[3].strip() in made.replace("\\_", "_")
    shown = re.findall(r"!\[[^\]]*\]\(plots/([^)]+)\)", made)
    assert {"against_rank.png", "grid.png", "beside_held_out_accuracy.png"} <= set(shown)
    assert sorted(shown) == sorted(path.name for path in (tmp_path / "plots").iterdir())
    embed(found, plots_of(found, curves), str(text))
    assert text.read_text() == made  # again, the same


def test_plots_that_a_report_has_no_more_are_removed_and_no_others(sweep, tmp_path):
    text = tmp_path / "README.md"
    text.write_text(f"{BEGIN}\n{END}\n")
    found, curves = report_with(sweep, ACCURACY)
    embed(found, plots_of(found, curves), str(text))
    (tmp_path / "plots" / "mine.png").write_bytes(b"mine")
    found, curves = report_with(sweep)
    embed(found, plots_of(found, curves), str(text))
    there = {path.name for path in (tmp_path / "plots").iterdir()}
    assert "beside_held_out_accuracy.png" not in there
    assert {"mine.png", "against_rank.png"} <= there


@pytest.mark.parametrize(
    "content", ["", f"{BEGIN}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n"], ids=range(4)
)
def test_a_text_without_a_place_for_it_is_refused(tmp_path, content):
    (tmp_path / "README.md").write_text(content)
    with pytest.raises(MarksError, match=re.escape(f"once, in this order:\n{BEGIN}\n{END}")):
        check_marks(str(tmp_path / "README.md"))
    with pytest.raises(MarksError, match="there is no such file"):
        check_marks(str(tmp_path / "READ.md"))
