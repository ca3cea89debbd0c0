"""Scores of several evaluations side by side: the tables and the plot that an experiment ends with."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from sft_jax.evaluation.figures import metric_name, score_text
from sft_jax.evaluation.report.drawing import COLORS, MARKERS, draw_point, figure_with_axes, name_lines, png_of
from sft_jax.evaluation.report.markdown import table_lines
from sft_jax.evaluation.report.tables import TextTable
from sft_jax.runs.workdir import write_whole
from sft_jax.sweeps.report.embedding import PLOTS, Marks, replace

MARKS: Marks = ("<!-- results -->", "<!-- end of the results -->")
PLOT = "methods"

Score = Mapping[str, float]  # {"value", "low", "high"}, the limits optional
_SPREAD = 0.6  # of a line's height, over which the points of its series lie
_WORDS = {"few_shot": "few-shot", "rag": "retrieval", "sft": "SFT"}  # for parts of methods


def read_task(evaluation: Path) -> dict[str, Any]:
    """What the command `evaluate` found of its one task, a probe or not: `scores`, `details` and so on, by method."""
    results = read_results(evaluation)
    (task,) = (results["tasks"] | (results["forgetting"] or {})).values()
    return task


def read_results(evaluation: Path) -> dict[str, Any]:
    """All that it found."""
    return json.loads((evaluation / "results.json").read_text(encoding="utf-8"))


def read_answers(evaluation: Path, method: str) -> list[dict[str, Any]]:
    """The rows of a method as it answered them: `prompt`, `answer`, `reference`, `outcome` and so on."""
    (path,) = (evaluation / "predictions").glob(f"*/{method}.jsonl")
    # Only \n ends a line: str.splitlines would also cut at U+2028.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]


def method_name(method: str) -> str:
    """As tables call a method: `prompted, few-shot` for `prompted+few_shot`."""
    return ", ".join(_WORDS.get(part, part) for part in method.split("+"))


def score_lines(task: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, dict[str, Score]]:
    """The scores of each method that was measured, in these metrics."""
    return {
        method_name(method): {metric: scores[metric] for metric in metrics if metric in scores}
        for method, scores in task["scores"].items()
    }


def group_scores(task: Mapping[str, Any], method: str, metric: str) -> dict[str, Score]:
    """The scores of a method by the group of the rows, and the gap, as `gap`; empty without groups."""
    found = {}
    for name, group, _, value, low, high, _ in task["details"][method].get("by group", {"rows": []})["rows"]:
        if name == metric:  # the p-value stands in the name of the gap
            found["gap" if group.startswith("gap (p = ") else group] = {"value": value, "low": low, "high": high}
    return found


def score_table(lines: Mapping[str, Mapping[str, Score]], title: str = "", first: str = "method") -> TextTable:
    """A line for each name, and a column for each metric that any line has."""
    metrics = list(dict.fromkeys(metric for scores in lines.values() for metric in scores))
    rows = tuple((name, *(score_text(scores.get(metric)) for metric in metrics)) for name, scores in lines.items())
    return TextTable(title, (first, *map(metric_name, metrics)), rows)


def score_plot(series: Mapping[str, Mapping[str, Score]], title: str, axis: str) -> bytes:
    """Shares with their intervals as PNG: a line for each name, and on it a point of each series that has it.

    Args:
        series: by what the legend calls it: the scores, which lie in [0, 1], by the names of lines.
        title: above the plot.
        axis: what the shares are of.
    """
    names = list(dict.fromkeys(name for scores in series.values() for name in scores))
    figure, axes = figure_with_axes(0.5 * len(names) + 1.4, title)
    for number, (words, scores) in enumerate(series.items()):
        color, marker = COLORS[number], MARKERS[number]
        for name, score in scores.items():
            beside = _SPREAD * ((number + 0.5) / len(series) - 0.5)
            draw_point(axes, score, names.index(name) + beside, color, marker)
        axes.plot([], [], marker, color=color, label=words)
    name_lines(axes, names)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel(axis)
    axes.legend(loc="best", frameon=False)
    return png_of(figure)


def metric_plot(lines: Mapping[str, Mapping[str, Score]], metrics: Sequence[str], title: str, axis: str) -> bytes:
    """`score_plot` of the metrics of each method that has them."""
    series = {
        metric_name(metric): {name: scores[metric] for name, scores in lines.items() if metric in scores}
        for metric in metrics
    }
    return score_plot(series, f"{title}, 95 % intervals", axis)


def show(out: Path, tables: Sequence[TextTable], plot: bytes | None, console: Console, into: str) -> None:
    """Writes `table.md`, and `methods.png` where there is a plot, into a directory, and prints the tables.

    Args:
        out: the directory.
        tables: what was found.
        plot: of it, as PNG; None: there is none.
        console: where tables are printed.
        into: a Markdown file that tables and plot are put into, between its marks; empty: none.
    """
    parts = ["\n".join([*([f"**{table.title}**", ""] if table.title else []), *table_lines(table)]) for table in tables]
    text = "\n\n".join(parts)
    plots = {} if plot is None else {PLOT: plot}
    write_whole(out / "table.md", text + "\n")
    for name, png in plots.items():
        write_whole(out / f"{name}.png", png)
    if into:
        images = [line for name in plots for line in (f"![scores of the methods]({PLOTS}/{name}.png)", "")]
        replace(into, [text, "", *images], plots, MARKS)
    console.print(text, highlight=False, soft_wrap=True, markup=False)
    files = ["table.md", *(f"{name}.png" for name in plots)]
    console.print(f"written: {', '.join(str(out / file) for file in files)}", soft_wrap=True)
