"""Compares two runs: what differs in their configs, their curves, and what they make of the same rows.

What a run made of rows is kept by its tasks (`evaluations/<step>/<task>.json`), and by evaluations in its directory
(`<directory>/predictions/<task>/<method>.jsonl`). Rows are paired by their ids.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from rich.console import Group
from rich.table import Table
from rich.text import Text

from sft_jax.evaluation.figures import ABSENT, metric_name
from sft_jax.evaluation.report.drawing import Plot, with_file_names
from sft_jax.evaluation.report.rows import page_rows, row_metric, row_value
from sft_jax.evaluation.report.tables import Section, TextTable, task_section, visible
from sft_jax.evaluation.report.terminal import comparisons_table
from sft_jax.evaluation.report.verdicts import task_verdicts
from sft_jax.evaluation.results import compared_outcomes
from sft_jax.runs.workdir import CONFIG, EVALUATIONS, PREDICTIONS, WorkdirError, config_there, flatten
from sft_jax.sweeps.report.curves import curves_of
from sft_jax.sweeps.report.plots import COST_NAMES, curves_plot
from sft_jax.sweeps.report.quantities import LOGGED, USUAL, costs_at, quantity_of
from sft_jax.sweeps.report.reading import Runs, SweptRun, read_run
from sft_jax.sweeps.report.sections import cost_text, number_text
from sft_jax.sweeps.report.write import PAGE, write_files
from sft_jax.sweeps.settings import exact_text

_CURVES, _SEED = "curves", 0  # a section; of the bootstrap
_MOST_ROWS, _LONGEST = 20, 90  # of the rows that differ, in text; characters of an answer there
Rows = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        found: {"runs": {NAME: {"directory", "state", "step", "error", "costs"}}, "config": [{"field", NAME: value}],
            "metrics": {METRIC: {NAME: value}}, "tasks": {TASK: as in `evaluation/report`}, "notes"}.
        answers: task -> name of a run -> rows, the same in the same order.
        plots: of curves.
    """

    found: Mapping[str, Any]
    answers: Mapping[str, Mapping[str, Rows]]
    plots: Sequence[Plot]


def compare_runs(first: epath.PathLike, second: epath.PathLike, axis: str) -> Comparison:
    """Compares two run directories.

    Args:
        first: a run directory.
        second: another one; differences are second - first.
        axis: of the curves, of `curves.AXES`.

    Raises:
        WorkdirError: one of them is no run directory, both are the same, or a file of theirs is damaged.
    """
    directories = [epath.Path(first), epath.Path(second)]
    for directory in directories:
        if not (directory / CONFIG).exists():
            raise WorkdirError(f"--compare: {directory} is not a run directory: there is no {CONFIG} in it")
    if len({str(directory.resolve()) for directory in directories}) < 2:
        raise WorkdirError(f"--compare: {first} and {second} are the same run")
    names = _names(directories)
    configs = [flatten(config_there(directory)) for directory in directories]
    best = [config.get("checkpoint.best_metric") or "" for config in configs]
    wanted = {*LOGGED, *USUAL, *best} - {""}
    runs = [
        read_run(directory, name, {"run": name}, config.get("seed"), wanted)
        for directory, name, config in zip(directories, names, configs, strict=True)
    ]
    answers, notes = _answers(runs)
    found = {
        "runs": {run.name: _described(run) for run in runs},
        "config": _differences(names, configs),
        "metrics": _metrics(runs),
        "tasks": {task: _task(by_run) for task, by_run in answers.items()},
        "notes": notes,
    }
    curves = _curve_plots(Runs(directories[0].parent, "", ("run",), tuple(runs), "", ""), [*best, *USUAL], axis)
    return Comparison(found, answers, curves)


def comparison_sections(comparison: Comparison) -> list[Section]:
    """The comparison in the order in which it is read."""
    found, names = comparison.found, list(comparison.found["runs"])
    config = [(one["field"], *(_config_cell(one[name]) for name in names)) for one in found["config"]]
    sections = [
        Section("config", "Config", tables=(TextTable("", ("field", *names), tuple(config)),))
        if config
        else Section("config", "Config", facts=("the same",)),
        Section("ends", "How they ended", tables=(_ends_table(found),)),
    ]
    facts = ("one run each: what another seed would have changed is not known",)
    sections.append(Section(_CURVES, "Metrics", facts=facts, tables=(_metrics_table(found),)))
    methods = _methods(names)
    for task, described in found["tasks"].items():
        section = task_section(f"task {task}", task, described, methods)
        table = _differing_table(described, comparison.answers[task])
        sections.append(dataclasses.replace(section, tables=(*section.tables, *([table] if table else []))))
    if found["notes"]:
        sections.append(Section("notes", "Notes", notes=tuple(found["notes"])))
    return sections


def write_comparison(comparison: Comparison, directory: epath.PathLike) -> epath.Path:
    """Writes report.html, report.md, report.json and plots/*.png; returns the page."""
    names = list(comparison.found["runs"])
    results = {"methods": _methods(names), "tasks": comparison.found["tasks"], "forgetting": None}
    rows = page_rows(results, comparison.answers) if comparison.answers else None
    title, words = " and ".join(names), "Differences are of the second to the first."
    sections = comparison_sections(comparison)
    paths = write_files(title, words, "Two runs", sections, comparison.plots, comparison.found, directory, {}, rows)
    return paths[PAGE]


def terminal_comparison(comparison: Comparison) -> Group:
    """What differs, metrics at the end, and paired scores with their verdicts."""
    found, names = comparison.found, list(comparison.found["runs"])
    tables = [section.tables[0] for section in comparison_sections(comparison)[:3] if section.tables]
    parts: list[Any] = [_rich(table) for table in tables]
    for task, described in found["tasks"].items():
        parts.append(Text(visible(f"\n{task}: {described['examples']:,} rows"), style="bold"))
        if described["comparisons"]:
            parts.append(comparisons_table(described, _methods(names)))
        parts += [Text(visible(sentence), style="bold") for sentence in task_verdicts(described, _methods(names))]
        table = _differing_table(described, comparison.answers[task])
        parts += [_rich(table)] if table else []
    return Group(*parts, *(Text(visible(note), style="dim") for note in found["notes"]))


def _rich(table: TextTable) -> Table:
    made = Table(title=Text(visible(table.title)) if table.title else None, title_justify="left")
    for place, column in enumerate(table.columns):
        justify = "right" if table.is_numeric(place) else "left"
        made.add_column(Text(visible(column)), justify=justify, overflow="fold")
    for row in table.rows:
        made.add_row(*(Text(visible(cell)) for cell in row))
    return made


def _names(directories: Sequence[epath.Path]) -> list[str]:
    """What the runs are called: of two runs of a sweep, what differs in their names."""
    names = [directory.resolve().name for directory in directories]
    parts = [name.rpartition("-")[0].split(",") for name in names]
    apart = [[part for part in own if part not in other] for own, other in zip(parts, reversed(parts), strict=True)]
    if all(apart):
        return [",".join(own) for own in apart]
    return names if len(set(names)) == len(names) else [str(directory) for directory in directories]


def _methods(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """The runs as the report of an evaluation knows its methods."""
    return {name: {"weights": "tuned"} for name in names}


def _described(run: SweptRun) -> dict[str, Any]:
    step = int(run.log.steps[-1]) if len(run.log.steps) else 0
    costs = costs_at(run, step) if len(run.log.steps) else {}
    return {
        "directory": str(run.directory),
        "state": run.state,
        "step": run.end.step if run.end else step,
        "error": run.error,
        "costs": costs,
    }


def _differences(names: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    fields = dict.fromkeys(field for config in configs for field in config)
    return [
        {"field": field, **{name: config.get(field) for name, config in zip(names, configs, strict=True)}}
        for field in fields
        if len({json.dumps(config.get(field)) for config in configs}) > 1
    ]


def _metrics(runs: Sequence[SweptRun]) -> dict[str, dict[str, float | None]]:
    """Figures of the ends of both."""
    values = [dict(run.end.metrics) if run.end else {} for run in runs]
    shared = [name for name in values[0] if name in values[1] and not name.startswith(("progress/", "speed/"))]
    number = lambda value: value if abs(value) < float("inf") else None
    return {name: {run.name: number(of[name]) for run, of in zip(runs, values, strict=True)} for name in shared}


def _curve_plots(runs: Runs, metrics: Sequence[str], axis: str) -> list[Plot]:
    names, plots = [run.name for run in runs.runs], []
    for metric in dict.fromkeys(metric for metric in metrics if metric):
        if not all(metric in run.log.names for run in runs.runs):
            continue
        quantity = quantity_of(runs, metric, "final", None)
        found = curves_of(runs, quantity, axis)
        curves = [dataclasses.replace(one, name=one.name.removeprefix("run=")) for one in found]
        plots.append(curves_plot(metric, quantity.better, curves, axis, names, (metric, _CURVES)))
    return with_file_names([plot for plot in plots if plot is not None])


def _answers(runs: Sequence[SweptRun]) -> tuple[dict[str, dict[str, Rows]], list[str]]:
    """Task -> run -> the rows that both have, in one order; and what could not be paired."""
    of_runs = [_all_rows(run) for run in runs]
    answers, notes = {}, []
    for task in of_runs[0]:
        if task not in of_runs[1]:
            continue
        first, second = ({row["id"]: row for row in of_run[task]} for of_run in of_runs)
        ids = [row for row in first if row in second and first[row]["reference"] == second[row]["reference"]]
        if not ids:
            notes.append(f"{task}: the two have no row in common.")
            continue
        if len(ids) < max(len(first), len(second)):
            notes.append(f"{task}: compared on the {len(ids):,} rows that both have.")
        answers[task] = {run.name: [rows[row] for row in ids] for run, rows in zip(runs, (first, second), strict=True)}
    only = sorted(set(of_runs[0]) ^ set(of_runs[1]))
    return answers, [*notes, *(f"{task}: only one of the two was measured by it." for task in only)]


def _all_rows(run: SweptRun) -> dict[str, Rows]:
    """Task -> rows of a run: by its last evaluation, and by evaluations in its directory."""
    found: dict[str, Rows] = {}
    steps = sorted((int(path.name) for path in (run.directory / EVALUATIONS).glob("[0-9]*")), reverse=True)
    for step in steps:
        for path in sorted((run.directory / EVALUATIONS / str(step)).glob("*.json")):
            found.setdefault(path.stem, _lines(path, json.loads(path.read_text())["lines"]))
    for path in sorted(run.directory.glob(f"*/{PREDICTIONS}/*/*.jsonl")):
        name = f"{path.parent.parent.parent.name}: {path.parent.name}, {path.stem}"
        found[name] = _lines(path, [json.loads(line) for line in path.read_text().rstrip("\n").split("\n")])
    return found


def _lines(path: epath.Path, lines: Rows) -> Rows:
    if len({line["id"] for line in lines}) < len(lines):
        raise WorkdirError(f"{path}: rows with the same id, which cannot be paired")
    return lines


def _task(by_run: Mapping[str, Rows]) -> dict[str, Any]:
    outcomes = {name: [row["outcome"] for row in rows] for name, rows in by_run.items()}
    count = len(next(iter(outcomes.values())))
    return {
        "kind": "rows",
        "data": "both runs",
        "examples": count,
        "dropped": 0,
        **compared_outcomes(outcomes, _SEED),
        "details": {},
        "notes": [],
        "examples_needed": None,
    }


def _differing_table(task: Mapping[str, Any], by_run: Mapping[str, Rows]) -> TextTable | None:
    """The first rows that one run does better than the other, or answers otherwise; None where there is none."""
    rows = list(zip(*by_run.values(), strict=True))
    metric = row_metric(task["primary"], [row["outcome"] for pair in rows for row in pair])
    value = lambda row: None if metric is None else row_value(metric, row["outcome"])
    differ = [pair for pair in rows if value(pair[0]) != value(pair[1])]
    what = f"Rows where {metric_name(metric)} differs" if metric else "Rows"
    if metric is None:
        differ, what = [pair for pair in rows if pair[0]["answer"] != pair[1]["answer"]], "Rows with other answers"
    if not differ:
        return None
    shown = f", the first {_MOST_ROWS}" if len(differ) > _MOST_ROWS else ""
    answer = lambda row: f"{_number(value(row))}: {_cut(row['answer'])}"
    cells = [
        (first["id"], _cut(first["reference"]), answer(first), answer(second)) for first, second in differ[:_MOST_ROWS]
    ]
    title = f"{what}: {len(differ):,} of {len(rows):,}{shown}"
    return TextTable(title, ("row", "reference", *by_run), tuple(cells), is_detail=True)


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3g}"


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _config_cell(value: Any) -> str:
    return _cut(exact_text(value))


def _ends_table(found: Mapping[str, Any]) -> TextTable:
    runs = found["runs"]
    costs = list(dict.fromkeys(cost for run in runs.values() for cost in run["costs"]))
    rows = [
        ("state", *(run["state"] for run in runs.values())),
        ("step", *(f"{run['step']:,}" for run in runs.values())),
    ]
    for cost in costs:
        rows.append((COST_NAMES[cost], *(cost_text(cost, run["costs"].get(cost)) for run in runs.values())))
    if any(run["error"] for run in runs.values()):
        rows.append(("error", *(run["error"] or ABSENT for run in runs.values())))
    return TextTable("", ("", *runs), tuple(rows))


def _metrics_table(found: Mapping[str, Any]) -> TextTable:
    text = lambda value, signed=False: number_text({"value": value, "low": None}, signed=signed)
    rows = []
    for metric, values in found["metrics"].items():
        first, second = values.values()
        difference = None if first is None or second is None else second - first
        rows.append((metric, text(first), text(second), text(difference, signed=True)))
    return TextTable("At the end", ("metric", *found["runs"], "difference"), tuple(rows))
