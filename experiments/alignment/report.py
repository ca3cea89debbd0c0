"""What came of the stages: scores with intervals, paired tests, costs, and how the runs went.

Everything is made of files: predictions of evaluations, logs of runs. Intervals and tests are those of
`python -m sft_jax.evaluate`: Wilson's and McNemar's for shares of answers, bootstrap and permutation for field F1.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.alignment.faults import faults_in, rejected_answers
from experiments.alignment.ways import Model
from experiments.faults import fault_tables
from experiments.scores import read_answers, read_results
from sft_jax.evaluation.figures import ABSENT, difference_text, p_text, score_text
from sft_jax.evaluation.report.drawing import COLORS, GRID, figure_with_axes, png_of
from sft_jax.evaluation.report.markdown import table_lines
from sft_jax.evaluation.report.tables import TextTable
from sft_jax.evaluation.report.verdicts import compared
from sft_jax.evaluation.report.write import RESULTS, write_report
from sft_jax.evaluation.results import compared_outcomes
from sft_jax.runs.metric_log import FILE, read_metrics
from sft_jax.runs.workdir import write_whole

TASK, PRIMARY = "documents", "exact_match"
_METRICS = (PRIMARY, "field_f1", "valid_json")
_CURVES = {"dpo": "train/accuracy", "rlvr": "train/reward"}  # name of a run -> what is drawn of its log
_SEED = 0  # of the bootstrap


def write(
    out: Path, models: Sequence[Model], evaluations: Mapping[str, Path], costs: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Writes `results.json`, `table.md`, `faults.md`, the report with answers side by side, and the runs' curves.

    Args:
        out: directory of the experiment.
        models: what is compared.
        evaluations: name of a model -> directory of its evaluation.
        costs: of the stages.

    Returns:
        The results, of the form of evaluations, and beside it `costs`.
    """
    methods, rows = {}, {}
    for name, directory in evaluations.items():
        ((method, methods[name]),) = read_results(directory)["methods"].items()
        rows[name] = read_answers(directory, method)
    results = results_of(rows, methods)
    write_report(results, {TASK: rows}, out / "report")
    results["costs"] = {name: dict(cost) for name, cost in costs.items()}
    write_whole(out / RESULTS, json.dumps(results, indent=2) + "\n")
    write_whole(out / "table.md", "\n".join(table_lines(table_of(results, models))) + "\n")
    faults = {name: faults_in((row["reference"], row["answer"]) for row in found) for name, found in rows.items()}
    if (pairs := out / "pairs.jsonl").exists():
        faults = {"rejected answers of the pairs": faults_in(rejected_answers(pairs, out / "fresh.jsonl")), **faults}
    write_whole(out / "faults.md", "\n".join(table_lines(fault_tables(faults)[0])) + "\n")
    logs = {name: read_metrics(out / name / FILE) for name in _CURVES if (out / name / FILE).exists()}
    write_whole(out / "curves.png", curves(logs))
    return results


def results_of(rows: Mapping[str, Sequence[Mapping]], methods: Mapping[str, Mapping]) -> dict[str, Any]:
    """The evaluations as one, whose methods are the models.

    Args:
        rows: name of a model -> predictions, of the same documents in the same order.
        methods: name of a model -> what its evaluation says of it.

    Raises:
        ValueError: models that were not measured on the same documents; names the first.
    """
    asked = {name: [(row["id"], row["reference"]) for row in found] for name, found in rows.items()}
    first = next(iter(asked))
    if other := next((name for name in asked if asked[name] != asked[first]), None):
        raise ValueError(f"{other} was measured on other documents than {first}; remove its evaluation, and start anew")
    outcomes = {name: [row["outcome"] for row in found] for name, found in rows.items()}
    task = {"kind": "generate", "data": "tested.jsonl", "examples": len(asked[first]), "dropped": 0}
    task |= compared_outcomes(outcomes, _SEED) | {"primary": PRIMARY}
    task |= {"details": {name: {} for name in rows}, "notes": [], "examples_needed": None}
    nothing = dict.fromkeys(("retrieval", "forgetting", "drift", "divergence", "gate"))
    return {
        "created": datetime.date.today().isoformat(),
        "seed": _SEED,
        "methods": dict(methods),
        "tasks": {TASK: task},
        **nothing,
    }


def table_of(results: Mapping[str, Any], models: Sequence[Model]) -> TextTable:
    """A row for each model: its scores, the difference in exact match to another one, and what it took."""
    task, costs = results["tasks"][TASK], results["costs"]
    others = {model.compared_with for model in models} - {None}
    (same,) = others if len(others) == 1 else (None,)
    compared_heads = (f"less {same}",) if same else ("compared with", "difference")
    heads = ("exact match", *compared_heads, "p (McNemar)", "p (Holm)", "field F1", "valid JSON", "processor minutes")
    rows = []
    for model in models:
        texts = [score_text(task["scores"][model.name][metric]) for metric in _METRICS]
        found = [ABSENT] * 3
        if model.compared_with is not None:
            pair = compared(task, model.compared_with, model.name)
            found = [difference_text(pair), *(_p(pair[key]) for key in ("p_value", "p_holm"))]
        if not same:
            found = [model.compared_with or ABSENT, *found]
        minutes = f"{costs[model.name]['processor_seconds'] / 60:.1f}" if model.name in costs else ABSENT
        rows.append((model.name, texts[0], *found, *texts[1:], minutes))
    return TextTable("", ("model", *heads), tuple(rows))


def curves(logs: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    """The figure of `_CURVES` by step, as a PNG."""
    figure, axes = figure_with_axes(3.6, "How the runs went")
    for color, (name, lines) in zip(COLORS, logs.items(), strict=False):
        points = [(line["step"], line[_CURVES[name]]) for line in lines if _CURVES[name] in line]
        axes.plot(*zip(*points, strict=True), "o-", color=color, markersize=4, label=f"{name}: {_CURVES[name]}")
    axes.set_xlabel("step")
    axes.grid(**GRID)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return png_of(figure)


def _p(value: float) -> str:
    return p_text(value).removeprefix("p ").removeprefix("= ")
