"""The results of an evaluation as one plain dict: scores, paired comparisons, costs. Reports are made of it alone."""

import collections
import datetime
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.evaluation.distinguishable import FOLDS, distinguishable
from sft_jax.evaluation.figures import score_text
from sft_jax.evaluation.groups import LEAST_IN_GROUP, bias_amplification, group_scores, has_bias_amplification
from sft_jax.evaluation.measuring import Entry, Measured
from sft_jax.evaluation.methods import BASE, TUNED, Method
from sft_jax.evaluation.metrics import higher_is_better, metrics_in
from sft_jax.evaluation.predictions import Before, Rows
from sft_jax.evaluation.sample_size import examples_needed
from sft_jax.evaluation.scorers import Outcome
from sft_jax.evaluation.scorers.cases import LABELS
from sft_jax.evaluation.scoring import aggregate, compare, detail_tables, metrics_of
from sft_jax.evaluation.side_by_side import ByMethod
from sft_jax.evaluation.statistics import holm

LOSSES = ("held_out_loss", "perplexity")
_SMALLEST_EFFECT = 1e-3  # of a standard deviation, which some 8 million rows show
_SHOWN = 5  # groups in a note


def results_of(
    entries: Sequence[Entry],
    methods: Sequence[Method],
    measured: ByMethod,
    training: Mapping[str, Any] | None,
    seed: int,
    before: Before | None = None,
) -> dict[str, Any]:
    """The results, ready for `json.dumps`.

    Args:
        entries: the tasks.
        methods: in the order of the tables.
        measured: by task and method.
        training: what the tuned weights cost; None where no method has them.
        seed: of the bootstrap.
        before: an earlier evaluation, whose methods are compared with these.
    """
    rows, probes = before.rows if before else {}, [entry.name for entry in entries if entry.options.probe]
    tasks = {entry.name: _task(entry, measured.tasks[entry.name], seed, rows.get(entry.name, {})) for entry in entries}
    described = {method.name: _method(method, measured, training) for method in methods}
    return {
        "created": datetime.date.today().isoformat(),
        "seed": seed,
        "methods": described | (before.methods if before else {}),
        "tasks": {name: task for name, task in tasks.items() if name not in probes},
        "retrieval": measured.search,
        "forgetting": {name: tasks[name] for name in probes} or None,
        "drift": None,
        "divergence": None,
        "gate": None,
    }


def drift_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """{"layer", "kind", "relative"} of the weights that `weight_drift` measured; without those whose norm was 0."""
    return [
        {
            "layer": "outside layers" if row["layer"] is None else str(row["layer"]),
            "kind": row["weight"].removesuffix("/kernel"),
            "relative": row["relative"],
        }
        for row in rows
        if row["relative"] is not None
    ]


def gate(results: Mapping[str, Any], max_regression: float) -> dict[str, Any] | None:
    """Which probes got worse by more than is allowed; None where nothing is said of that.

    Args:
        results: of `results_of`, with both weights.
        max_regression: how much worse a probe's primary metric may be; 0: nothing is refused.
    """
    if not max_regression or not results["forgetting"]:
        return None
    failed = []
    for name, task in results["forgetting"].items():
        base, tuned = (task["scores"][method][task["primary"]]["value"] for method in (BASE, TUNED))
        worse = base - tuned if higher_is_better(task["primary"]) is not False else tuned - base
        if worse > max_regression:
            failed.append(f"{name}: {task['primary']} {base:.3f} -> {tuned:.3f}")
    return {"max_regression": max_regression, "failed": failed}


def _method(method: Method, measured: ByMethod, training: Mapping[str, Any] | None) -> dict[str, Any]:
    of_tasks = [of_task[method.name] for of_task in measured.tasks.values() if method.name in of_task]
    requests = max(1, sum(len(one.outcomes) for one in of_tasks))
    mean = lambda value: sum(value(one) * len(one.outcomes) for one in of_tasks) / requests
    return {
        **measured.descriptions[method.name],
        "weights": "tuned" if method.is_tuned else "base",
        "prompt_tokens": mean(lambda one: one.prompt_tokens),
        "generated_tokens": mean(lambda one: one.generated_tokens),
        "seconds": mean(lambda one: one.seconds),
        "requests": requests,
        "cut_prompts": sum(one.cut for one in of_tasks),
        "training": dict(training) if method.is_tuned and training else None,
    }


def _task(entry: Entry, measured: Mapping[str, Measured], seed: int, before: Mapping[str, Rows]) -> dict[str, Any]:
    outcomes = {name: one.outcomes for name, one in measured.items()}
    outcomes |= {name: [row["outcome"] for row in rows] for name, rows in before.items()}
    compared = compared_outcomes(outcomes, seed)
    notes = [f"{name}: {note}" for name, one in measured.items() for note in one.notes]
    return {
        "kind": entry.options.kind,
        "data": entry.options.path,
        "examples": len(entry.records),
        "dropped": len(entry.dropped),
        **compared,
        "details": {name: _details(entry, found, seed) for name, found in outcomes.items()},
        "notes": notes + list(filter(None, [_group_note(entry), _told_apart(entry, measured, seed)])),
        "examples_needed": _examples_needed(
            {name: one.outcomes for name, one in measured.items()}, compared["primary"]
        ),
    }


def compared_outcomes(outcomes: Mapping[str, Sequence[Outcome]], seed: int) -> dict[str, Any]:
    """{"primary", "scores", "comparisons"} of what methods, or runs, made of the same rows in the same order."""
    return {
        "primary": _primary(next(iter(outcomes.values()))),
        "scores": {
            name: {metric: score.as_dict() for metric, score in aggregate(found, seed).items()}
            for name, found in outcomes.items()
        },
        "comparisons": _comparisons(outcomes, seed),
    }


def _told_apart(entry: Entry, measured: Mapping[str, Measured], seed: int) -> str:
    """Whether a classifier tells the tuned model's answers from the base's; empty where that cannot be asked."""
    if entry.options.kind != "generate" or not {BASE, TUNED} <= measured.keys():
        return ""
    answers = [[line["answer"] for line in measured[name].lines] for name in (BASE, TUNED)]
    if len(entry.records) < 2 * FOLDS or not any(text.strip() for texts in answers for text in texts):
        return ""
    auc = distinguishable(*answers, seed).auc
    return f"A classifier of style tells {TUNED}'s answers from {BASE}'s with an AUC of {score_text(auc.as_dict())}."


def _primary(outcomes: Sequence[Outcome]) -> str:
    """The metric that a task is judged by: the first one that is no loss."""
    return next((name for name in metrics_of(outcomes) if name not in LOSSES), LOSSES[0])


def _comparisons(outcomes: Mapping[str, Sequence[Outcome]], seed: int) -> list[dict[str, Any]]:
    """All pairs of methods in the metrics that both have; p-values are corrected for the pairs of a metric."""
    found = []
    for first, second in itertools.combinations(outcomes, 2):
        for metric, comparison in compare(*shared_columns(outcomes[first], outcomes[second]), seed).items():
            found.append({"first": first, "second": second, "metric": metric, **comparison.as_dict()})
    for metric in {one["metric"] for one in found}:
        of_metric = [one for one in found if one["metric"] == metric]
        for one, corrected in zip(of_metric, holm([one["p_value"] for one in of_metric]), strict=True):
            one["p_holm"] = corrected
    return found


def shared_columns(first: Sequence[Outcome], second: Sequence[Outcome]) -> tuple[list[Outcome], list[Outcome]]:
    """Both in the columns that both have: of a loss that one method has no prompt for, or of parts that one template
    alone writes, there is nothing to compare.
    """
    columns = [column for column in first[0] if column in second[0]]
    first, second = ([{name: one[name] for name in columns} for one in outcomes] for outcomes in (first, second))
    return first, second


def _details(entry: Entry, outcomes: Sequence[Outcome], seed: int) -> dict[str, dict[str, list]]:
    """The tables behind the metrics, and those by group where rows have groups."""
    tables = {name: _as_table(table) for name, table in detail_tables(outcomes).items()}
    groups = [record.group for record in entry.records]
    if len(set(groups)) < 2:
        return tables
    if rows := _group_rows(outcomes, groups, seed):
        tables["by group"] = {"columns": ["metric", "group", "examples", "value", "low", "high", ""], "rows": rows}
    if set(LABELS) <= set(outcomes[0]) and (table := _amplification_table(outcomes, groups, seed)):
        tables["bias amplification"] = table
    return tables


def _group_note(entry: Entry) -> str:
    """Which groups have too few rows to be scored apart; empty for none."""
    sizes = collections.Counter(record.group for record in entry.records)
    small = sorted(group for group, size in sizes.items() if size < LEAST_IN_GROUP)
    if len(sizes) < 2 or not small:
        return ""
    shown = ", ".join(repr(group) for group in small[:_SHOWN]) + (", …" if len(small) > _SHOWN else "")
    return f"Groups with a single row are not scored apart: {len(small):,} of {len(sizes):,}, {shown}."


def _group_rows(outcomes: Sequence[Outcome], groups: Sequence[str], seed: int) -> list[list]:
    rows = []
    for metric, found in group_scores(outcomes, groups, seed).items():
        for group, score in found.scores.items():
            mark = "worst" if group == found.worst else "best" if group == found.best else ""
            rows.append([metric, group, found.examples[group], score.value, score.low, score.high, mark])
        gap = found.gap
        rows.append([metric, f"gap (p = {found.p_value:.3g})", len(found.scores), gap.value, gap.low, gap.high, ""])
    return rows


def _amplification_table(outcomes: Sequence[Outcome], groups: Sequence[str], seed: int) -> dict[str, list] | None:
    """After Zhao et al. 2017; None where no group is over-represented in any label that is predicted."""
    labelled = [
        (*(outcome[column] for column in LABELS), group)
        for outcome, group in zip(outcomes, groups, strict=True)
        if outcome[LABELS[1]] is not None
    ]
    predicted, expected, groups = zip(*labelled, strict=True) if labelled else ((), (), ())
    if not has_bias_amplification(predicted, expected, groups):
        return None
    found = bias_amplification(predicted, expected, groups, seed)
    columns = ["label", "group", "data_share", "predicted_share", "amplification"]
    rows = [[row[column] for column in columns] for row in found.rows]
    rows.append([f"mean [{found.mean.low:+.3f}, {found.mean.high:+.3f}]", "", None, None, found.mean.value])
    return {"columns": columns, "rows": rows}


def _as_table(table: Mapping[str, Mapping[str, Any]]) -> dict[str, list]:
    """{row: {column: value}} as columns and rows."""
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    return {"columns": ["", *columns], "rows": [[name, *(row.get(c) for c in columns)] for name, row in table.items()]}


def _examples_needed(outcomes: Mapping[str, Sequence[Outcome]], metric: str) -> int | None:
    """Rows with which the difference of the first and the last method would be shown, if it is as large as it seems.

    None of a single method, of a metric that is no mean over rows or that one of the two lacks, and of a difference
    that is 0 or so small beside its spread that millions of rows would not do.
    """
    names = list(outcomes)
    first, second = shared_columns(outcomes[names[0]], outcomes[names[-1]])
    described = metrics_in(first, second).get(metric)
    if len(names) < 2 or described is None:
        return None
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if described.has_value(a) and described.has_value(b)]
    tables = [described.table(outcomes) for outcomes in zip(*pairs, strict=True)]
    if len(pairs) < 2 or any(table.shape[1] != 2 or (table[:, 1] != 1).any() for table in tables):
        return None
    differences = tables[1][:, 0] - tables[0][:, 0]
    difference, deviation = float(differences.mean()), float(differences.std(ddof=1))
    if not difference or abs(difference) <= _SMALLEST_EFFECT * deviation:
        return None
    if described.is_proportion:
        return examples_needed(difference, discordant=float(np.mean(differences != 0)))
    return examples_needed(difference, deviation=deviation) if deviation else None
