"""From answers to scores: one outcome for each example, aggregated with uncertainty or compared in pairs.

A scorer (`scorers/`) is a pure function (answer, case) -> outcome, a flat dict of plain values that goes into JSON as
it is. `metrics.py` says which metrics its columns make up; here they get intervals and paired tests:

    proportions        Wilson interval, exact McNemar test
    everything else    BCa bootstrap over examples, paired permutation test
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from sft_jax.evaluation.metrics import (
    Metric,
    labels_of,
    metrics_in,
    precision_of_sums,
    recall_of_sums,
)
from sft_jax.evaluation.scorers.cases import LABELS, OTHER, Case, Outcome, Scorer
from sft_jax.evaluation.statistics import (
    Score,
    bootstrap_interval,
    mcnemar_exact,
    micro_f1,
    paired_difference,
    paired_permutation,
    wilson,
)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Difference `second - first` of one metric on the same examples, with the paired test's p-value and its name."""

    difference: Score
    p_value: float
    test: str

    def as_dict(self) -> dict[str, float | str]:
        """`{"value", "low", "high", "p_value", "test"}`."""
        return {**self.difference.as_dict(), "p_value": self.p_value, "test": self.test}


def score_examples(scorer: Scorer, predictions: Sequence[str], cases: Sequence[Case]) -> list[Outcome]:
    """One outcome for each example, in their order.

    Raises ValueError on unequal lengths, or where the scorer refuses a case (with its id).
    """
    outcomes = []
    for prediction, case in zip(predictions, cases, strict=True):
        try:
            outcomes.append(scorer(prediction, case))
        except ValueError as error:
            raise ValueError(f"row {case.id}: {error}") from error
    return outcomes


def check_cases(scorer: Scorer, cases: Sequence[Case]) -> None:
    """Scores an empty answer to every case, so that what cannot be scored is known before answers are generated.

    Raises ValueError where the scorer refuses a case, or its outcomes make up no metric.
    """
    metrics_in(score_examples(scorer, [""] * len(cases), cases))


def aggregate(outcomes: Sequence[Outcome], seed: int) -> dict[str, Score]:
    """Metric -> score with 95 % confidence interval; deterministic by seed.

    Raises ValueError where there are no outcomes, they differ in their columns, or a column belongs to no metric.
    """
    return {name: score_of(metric, outcomes, seed) for name, metric in metrics_in(outcomes).items()}


def score_values(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Metric -> its value alone, without the work for an interval."""
    of_sums = lambda metric: float(metric.statistic(metric.table(outcomes).sum(0)))
    return {name: of_sums(metric) for name, metric in metrics_in(outcomes).items()}


def score_of(metric: Metric, outcomes: Sequence[Outcome], seed: int) -> Score:
    """One metric with its 95 % confidence interval."""
    table = metric.table(outcomes)
    if metric.is_proportion:
        return wilson(int(table[:, 0].sum()), len(table))
    return bootstrap_interval(table, metric.statistic, seed=seed, maximum=metric.maximum)


def compare(first: Sequence[Outcome], second: Sequence[Outcome], seed: int) -> dict[str, Comparison]:
    """Metric -> paired comparison `second - first`, for two systems' outcomes on the same examples in the same order.

    p-values are per metric and two-sided, not corrected for the number of metrics (`statistics.holm` does that). A
    metric for which one of the systems has no value is left out. Raises ValueError where the numbers of examples or the
    columns differ.
    """
    if len(first) != len(second):
        raise ValueError(f"compare: {len(first)} examples against {len(second)}; a paired test needs the same examples")
    names = metrics_of(first), metrics_of(second)
    if set(first[0]) != set(second[0]):
        raise ValueError(f"compare: metrics {names[0]} against {names[1]}")
    metrics = metrics_in(first, second)
    return {name: _compared(name, metrics[name], first, second, seed) for name in names[0] if name in names[1]}


def _compared(name: str, metric: Metric, first: Sequence[Outcome], second: Sequence[Outcome], seed: int) -> Comparison:
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if metric.has_value(a) and metric.has_value(b)]
    if not pairs:
        raise ValueError(f"compare: {name}: there is no example for which both have a value")
    tables = [metric.table(outcomes) for outcomes in zip(*pairs, strict=True)]
    difference = paired_difference(*tables, metric.statistic, seed=seed, maximum=metric.maximum)
    if metric.is_proportion:
        lost, won = ((a[:, 0] > b[:, 0]).sum() for a, b in (tables, tables[::-1]))
        return Comparison(difference, mcnemar_exact(int(lost), int(won)), "exact McNemar")
    return Comparison(difference, paired_permutation(*tables, metric.statistic, seed=seed), "paired permutation")


def metrics_of(outcomes: Sequence[Outcome]) -> list[str]:
    """Names of the metrics that the columns make up: ratios first, then the other columns in their order."""
    return list(metrics_in(outcomes))


def detail_tables(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """What lies behind the metrics, as plain dicts; empty where the outcomes have neither labels nor tables.

        {"confusion": {expected label: {predicted label: examples}},
         "labels": {label: {"precision", "recall", "f1", "support"}},
         column of [hits, predicted, expected]: {name: {"precision", "recall", "f1", "support"}},
         column of [hits, count]: {name: {"share", "support"}}}

    `support` is the number expected, or counted. The last column of `confusion` is of answers that are no label.
    """
    metrics_in(outcomes)  # checks the columns
    tables = _label_tables(outcomes) if set(LABELS) <= set(outcomes[0]) else {}
    for column in outcomes[0]:
        sums: dict[str, list[int]] = {}
        for outcome in outcomes:
            if isinstance(outcome[column], dict):
                for name, counts in outcome[column].items():
                    sums[name] = [a + b for a, b in zip(sums.get(name, [0] * len(counts)), counts, strict=True)]
        if sums:
            tables[column] = {name: _table_row(counts) for name, counts in sorted(sums.items())}
    return tables


def _label_tables(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    labels = labels_of(outcomes)
    confusion = {expected: dict.fromkeys([*labels, OTHER], 0) for expected in labels}
    for predicted, expected in (tuple(outcome[column] for column in LABELS) for outcome in outcomes):
        if expected is not None:
            confusion[expected][predicted if predicted in confusion else OTHER] += 1
    rows = {}
    for label in labels:
        predicted = sum(confusion[expected][label] for expected in labels)
        rows[label] = _table_row([confusion[label][label], predicted, sum(confusion[label].values())])
    return {"confusion": confusion, "labels": rows}


def _table_row(counts: Sequence[int]) -> dict[str, float]:
    if len(counts) == 2:
        return {"share": counts[0] / counts[1] if counts[1] else 1.0, "support": counts[1]}
    sums = np.array(counts, np.float64)
    figures = {"precision": precision_of_sums, "recall": recall_of_sums, "f1": micro_f1}
    return {name: float(figure(sums)) for name, figure in figures.items()} | {"support": counts[2]}
