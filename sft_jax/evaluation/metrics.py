"""From columns to metrics: what the type of a column says about how it is aggregated.

Stands between the scorers, which give one outcome for each example, and `scoring.py`, which puts intervals and paired
tests on the metrics:

    bool        a proportion
    float       a mean of values in [0, 1]
    int         a count, part of a ratio in `RATIOS`
    list        sums of the corpus metric in `CORPUS` that has the name of the column (BLEU, chrF)
    str         `predicted_label` and `expected_label`: `macro_f1`
    dict        {name: [hits, count]}: the share of hits, of all names together; or {name: [hits, predicted, expected]}:
                `<column>_f1`, `<column>_precision` and `<column>_recall`, of all names together
    None        no value for this example: it is left out of the metric, and adds 0 to the sums of a ratio; a column
                that is None for every example is no metric

Every metric is a function of the sums of an example's numbers over the examples, which is what can be resampled.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from sft_jax.evaluation.corpus_metrics import corpus_bleu, corpus_chrf
from sft_jax.evaluation.scorers.cases import LABELS, Outcome
from sft_jax.evaluation.statistics import Statistic, micro_f1, ratio_of_sums


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A metric made of the sums of several columns of counts; it lies in [0, `maximum`], or has no upper bound."""

    columns: tuple[str, ...]
    statistic: Statistic
    maximum: float | None = 1.0


RATIOS: dict[str, Ratio] = {
    "field_f1": Ratio(("true_positives", "predicted", "expected"), micro_f1),
    # Sum of weighted negative log-likelihoods (nats) over sum of weights (supervised tokens).
    "held_out_loss": Ratio(("loss_sum", "loss_weight"), ratio_of_sums, maximum=None),
    "perplexity": Ratio(("loss_sum", "loss_weight"), lambda sums: np.exp(ratio_of_sums(sums)), maximum=None),
    "length_ratio": Ratio(("answer_length", "reference_length"), ratio_of_sums, maximum=None),
}
# Name of a column whose values are sums -> statistic of them; scores lie in [0, 100].
CORPUS: dict[str, Statistic] = {"bleu": corpus_bleu, "chrf": corpus_chrf, "chrf_plus_plus": corpus_chrf}
CORPUS_MAXIMUM = 100.0
# Of those that are not better the higher they are: False for better the lower, None where neither is better.
DIRECTIONS: dict[str, bool | None] = {
    "held_out_loss": False,
    "perplexity": False,
    "repetition": False,
    "exceeded": False,
    "length_ratio": None,
}


def higher_is_better(metric: str) -> bool | None:
    """False for losses; None for a metric that describes and does not judge, such as a ratio of lengths."""
    return DIRECTIONS.get(metric, True)


@dataclasses.dataclass(frozen=True)
class Metric:
    """How a metric follows from outcomes.

    Attributes:
        numbers: the numbers of an example, of which sums are taken; None where it has no value.
        statistic: of the sums.
        maximum: it lies in [0, maximum]; None: it has no bounds.
        is_proportion: the numbers are (0 or 1, 1).
    """

    numbers: Callable[[Outcome], Sequence[float] | None]
    statistic: Statistic
    maximum: float | None = 1.0
    is_proportion: bool = False

    def has_value(self, outcome: Outcome) -> bool:
        return self.numbers(outcome) is not None

    def table(self, outcomes: Iterable[Outcome]) -> Float[np.ndarray, "examples columns"]:
        """The numbers of those examples that have a value."""
        return np.array([row for row in map(self.numbers, outcomes) if row is not None], np.float64)


def metrics_in(*systems: Sequence[Outcome]) -> dict[str, Metric]:
    """Name -> metric, for outcomes of one or several systems: ratios first, then the other columns in their order.

    Where several systems are given they get the same labels. A column without any value is no metric: `content_match`
    where all references are calls alone.

    Raises:
        ValueError: there are no outcomes, they differ in their columns, or a column belongs to no metric.
    """
    outcomes = [outcome for system in systems for outcome in system]
    if not outcomes:
        raise ValueError("no outcomes to score: there are no examples")
    columns = set(outcomes[0])
    for index, outcome in enumerate(outcomes):
        if set(outcome) != columns:
            raise ValueError(f"outcome {index} has columns {sorted(outcome)}, outcome 0 has {sorted(columns)}")
    ratios = {name: ratio for name, ratio in RATIOS.items() if columns.issuperset(ratio.columns)}
    metrics = {name: _of_ratio(ratio) for name, ratio in ratios.items()}
    taken = {column for ratio in ratios.values() for column in ratio.columns}
    for column in outcomes[0]:
        values = [outcome[column] for outcome in outcomes if outcome[column] is not None]
        if column not in taken and values:
            metrics |= _of_column(column, values, outcomes)
    return metrics


def _of_column(column: str, values: Sequence[Any], outcomes: Sequence[Outcome]) -> dict[str, Metric]:
    """The metrics of a column that has a value for some example."""
    kinds = {_kind(value) for value in values}
    if len(kinds) > 1:
        raise ValueError(f"column {column!r} has values of several types: {', '.join(sorted(kinds))}")
    kind = kinds.pop()
    if kind == "count":
        raise ValueError(f"column {column!r} is a count of no ratio in RATIOS; give a bool, a float or a ratio")
    if kind == "text":
        return _of_labels(column, outcomes)
    if kind == "sums":
        if column not in CORPUS:
            raise ValueError(f"column {column!r} has sums of no metric in CORPUS, which has {', '.join(CORPUS)}")
        return {column: Metric(lambda outcome: outcome[column], CORPUS[column], CORPUS_MAXIMUM)}
    if kind == "table":
        return _of_table(column, values)
    if kind == "mean" and not all(0 <= value <= 1 for value in values):
        raise ValueError(f"{column}: values of a mean must lie in [0, 1], got {min(values)} to {max(values)}")
    of_one = lambda outcome: None if outcome[column] is None else (float(outcome[column]), 1.0)
    return {column: Metric(of_one, ratio_of_sums, is_proportion=kind == "proportion")}


def _kind(value: Any) -> str:
    types = {bool: "proportion", int: "count", float: "mean", str: "text"}
    if isinstance(value, Mapping):
        return "table"
    if isinstance(value, list | tuple):
        return "sums"
    return next(name for type_, name in types.items() if isinstance(value, type_))


def _of_ratio(ratio: Ratio) -> Metric:
    numbers = lambda outcome: [float(outcome[column] or 0) for column in ratio.columns]
    return Metric(numbers, ratio.statistic, ratio.maximum)


def _of_table(column: str, tables: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Metric]:
    """Metrics of counts by name, which are summed over the names."""
    widths = {len(counts) for table in tables for counts in table.values()}
    if not widths <= {2} and not widths <= {3}:
        raise ValueError(f"column {column!r}: expected lists of 2 or of 3 counts, got lengths {sorted(widths)}")
    if not widths:
        return {}
    (width,) = widths

    def numbers(outcome: Outcome) -> Sequence[float] | None:
        table = outcome[column]
        return None if table is None else [float(sum(counts[i] for counts in table.values())) for i in range(width)]

    if width == 2:
        return {column: Metric(numbers, share_of_sums)}
    statistics = {"f1": micro_f1, "precision": precision_of_sums, "recall": recall_of_sums}
    return {f"{column}_{name}": Metric(numbers, statistic) for name, statistic in statistics.items()}


def _of_labels(column: str, outcomes: Sequence[Outcome]) -> dict[str, Metric]:
    """Macro-F1, at the first of the two columns of labels."""
    if column not in LABELS or not set(LABELS) <= set(outcomes[0]):
        raise ValueError(f"column {column!r} is text of no metric; labels are columns named {' and '.join(LABELS)}")
    if column != LABELS[0]:
        return {}
    place = {label: index for index, label in enumerate(labels_of(outcomes))}

    def numbers(outcome: Outcome) -> Sequence[float] | None:
        predicted, expected = (outcome[name] for name in LABELS)
        if expected is None:
            return None
        row = np.zeros((len(place), 3))
        row[place[expected], 2] = 1
        if predicted in place:
            row[place[predicted], 1] = 1
            row[place[expected], 0] = predicted == expected
        return row.ravel().tolist()

    return {"macro_f1": Metric(numbers, macro_f1)}


def labels_of(outcomes: Iterable[Outcome]) -> list[str]:
    """The labels that occur among the references, sorted."""
    return sorted({outcome[LABELS[1]] for outcome in outcomes if outcome[LABELS[1]] is not None})


def share_of_sums(sums: Float[np.ndarray, "... 2"]) -> Float[np.ndarray, "..."]:
    """First column's sum over the second's, 1 where there is nothing to count."""
    return np.where(sums[..., 1] > 0, sums[..., 0] / np.maximum(sums[..., 1], 1e-300), 1.0)


def precision_of_sums(sums: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "..."]:
    """Hits over predicted; without a prediction 0, or 1 if nothing was expected either."""
    hits, predicted, expected = np.moveaxis(sums, -1, 0)
    return np.where(predicted > 0, hits / np.maximum(predicted, 1e-300), np.where(expected > 0, 0.0, 1.0))


def recall_of_sums(sums: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "..."]:
    """Hits over expected; where nothing was expected 0, or 1 if nothing was predicted either."""
    return precision_of_sums(sums[..., [0, 2, 1]])


def macro_f1(sums: Float[np.ndarray, "... columns"]) -> Float[np.ndarray, "..."]:
    """Mean of the F1 of those labels that are expected; columns are (hits, predicted, expected) of each label."""
    counts = sums.reshape(*sums.shape[:-1], -1, 3)
    is_expected = counts[..., 2] > 0
    return np.asarray(np.sum(micro_f1(counts) * is_expected, -1) / np.maximum(np.sum(is_expected, -1), 1))
