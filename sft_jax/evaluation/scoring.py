"""From answers to scores: one outcome for each example, aggregated with uncertainty or compared in pairs.

A scorer is a pure function (prediction, reference) -> outcome, a flat dict whose value types say how it is
aggregated:

    bool   a proportion:                Wilson interval, exact McNemar test
    float  a mean of values in [0, 1]:  BCa bootstrap over examples, sign-flip permutation test
    int    a count, part of a ratio in `RATIOS` (micro-F1): BCa bootstrap over examples, swap permutation test
    None   no value for this example: it is left out of a proportion or a mean, and adds 0 to the sums of a ratio; a
           column that is None for every example is no metric

So a new scorer is one function and one line in `SCORERS`. Outcomes hold plain Python values and go into JSON
as they are.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from sft_jax.evaluation.json_answers import comparable_fields, parse_object
from sft_jax.evaluation.statistics import (
    Score,
    Statistic,
    bootstrap_interval,
    mcnemar_exact,
    mean_columns,
    micro_f1,
    paired_difference,
    paired_permutation,
    ratio_of_sums,
    wilson,
)

Outcome = Mapping[str, bool | int | float | None]
Scorer = Callable[[str, str], Outcome]


def score_text(prediction: str, reference: str) -> Outcome:
    """`exact_match`: equal after white space is normalised (case counts)."""
    return {"exact_match": prediction.split() == reference.split()}


def score_json_extraction(prediction: str, reference: str) -> Outcome:
    """Fields of a JSON object against the reference's.

    `valid_json`: an object could be read out of the answer (`json_answers.parse_object`). `exact_match`: all
    fields equal and no other one is there. `predicted`, `expected`: number of fields with a value;
    `true_positives`: expected fields with an equal value. A field the reference does not know, or knows as
    missing, counts as predicted and thus as wrong. Equality is that of `json_answers.comparable_fields`.
    Raises ValueError where the reference is no JSON object.

    >>> score_json_extraction('Sure: {"Make": "ford", "year": "2012"}', '{"make": "Ford", "year": 2012, "vin": null}')
    {'valid_json': True, 'exact_match': True, 'true_positives': 2, 'predicted': 2, 'expected': 2}
    """
    target = parse_object(reference)
    if target is None:
        raise ValueError(f"json_extraction: the reference is not a JSON object: {reference[:80]!r}")
    answer = parse_object(prediction)
    expected = comparable_fields(target)
    predicted = comparable_fields(answer or {})
    return {
        "valid_json": answer is not None,
        "exact_match": answer is not None and predicted == expected,
        "true_positives": sum(predicted.get(name) == value for name, value in expected.items()),
        "predicted": len(predicted),
        "expected": len(expected),
    }


SCORERS: dict[str, Scorer] = {
    "json_extraction": score_json_extraction,
    "exact_match": score_text,
}


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A metric made of sums of several columns; `bounded` where it lies in [0, 1]."""

    columns: tuple[str, ...]
    statistic: Statistic
    bounded: bool = True
    higher_is_better: bool = True


RATIOS: dict[str, Ratio] = {
    "field_f1": Ratio(("true_positives", "predicted", "expected"), micro_f1),
    # Sum of weighted negative log-likelihoods (nats) over sum of weights (supervised tokens).
    "held_out_loss": Ratio(("loss_sum", "loss_weight"), ratio_of_sums, bounded=False, higher_is_better=False),
}


def higher_is_better(metric: str) -> bool:
    """False for losses."""
    return RATIOS[metric].higher_is_better if metric in RATIOS else True


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Difference `second - first` of one metric on the same examples, with the paired test's p-value and its name."""

    difference: Score
    p_value: float
    test: str

    def as_dict(self) -> dict[str, float | str]:
        """`{"value", "low", "high", "p_value", "test"}`."""
        return {**self.difference.as_dict(), "p_value": self.p_value, "test": self.test}


def score_examples(
    scorer: str, predictions: Sequence[str], references: Sequence[str], example_ids: Sequence[str]
) -> list[Outcome]:
    """One outcome for each example, in their order.

    Raises ValueError on an unknown scorer, unequal lengths or a bad reference (with its id).
    """
    if scorer not in SCORERS:
        raise ValueError(f"no scorer named {scorer!r}; there are {', '.join(sorted(SCORERS))}")
    outcomes = []
    for example_id, prediction, reference in zip(example_ids, predictions, references, strict=True):
        try:
            outcomes.append(SCORERS[scorer](prediction, reference))
        except ValueError as error:
            raise ValueError(f"row {example_id}: {error}") from error
    return outcomes


def aggregate(outcomes: Sequence[Outcome], seed: int) -> dict[str, Score]:
    """Metric -> score with 95 % confidence interval; deterministic by seed.

    Raises ValueError where there are no outcomes, they differ in their columns, or a column belongs to no metric.
    """
    scores = {}
    for metric in metrics_of(outcomes):
        if _is_proportion(outcomes, metric):
            values = [bool(outcome[metric]) for outcome in outcomes if outcome[metric] is not None]
            scores[metric] = wilson(sum(values), len(values))
        else:
            columns, statistic, bounded = _columns(outcomes, metric)
            scores[metric] = bootstrap_interval(columns, statistic, seed=seed, bounded=bounded)
    return scores


def compare(first: Sequence[Outcome], second: Sequence[Outcome], seed: int) -> dict[str, Comparison]:
    """Metric -> paired comparison `second - first`, for two systems' outcomes on the same examples in the same order.

    p-values are per metric and two-sided, not corrected for the number of metrics. A metric for which one of the
    systems has no value is left out. Raises ValueError where the numbers of examples or the columns differ.
    """
    if len(first) != len(second):
        raise ValueError(f"compare: {len(first)} examples against {len(second)}; a paired test needs the same examples")
    metrics = metrics_of(first), metrics_of(second)
    if set(first[0]) != set(second[0]):
        raise ValueError(f"compare: metrics {metrics[0]} against {metrics[1]}")
    comparisons = {}
    for metric in (metric for metric in metrics[0] if metric in metrics[1]):
        both_first, both_second = _examples_of_both(first, second, metric)
        columns_first, statistic, bounded = _columns(both_first, metric)
        columns_second, _, _ = _columns(both_second, metric)
        pair = (columns_first, columns_second, statistic)
        difference = paired_difference(*pair, seed=seed, bounded=bounded)
        if _is_proportion(first, metric):
            pairs = [(bool(a[metric]), bool(b[metric])) for a, b in zip(both_first, both_second, strict=True)]
            p_value, test = mcnemar_exact(pairs.count((True, False)), pairs.count((False, True))), "exact McNemar"
        else:
            p_value, test = paired_permutation(*pair, seed=seed), "paired permutation"
        comparisons[metric] = Comparison(difference, p_value, test)
    return comparisons


def metrics_of(outcomes: Sequence[Outcome]) -> list[str]:
    """Names of the metrics that the columns make up: ratios first, then the other columns in their order.

    A column without any value is no metric: `content_match` where all references are calls alone.
    """
    if not outcomes:
        raise ValueError("no outcomes to score: there are no examples")
    columns = set(outcomes[0])
    for index, outcome in enumerate(outcomes):
        if set(outcome) != columns:
            raise ValueError(f"outcome {index} has columns {sorted(outcome)}, outcome 0 has {sorted(columns)}")
    ratios = [name for name, ratio in RATIOS.items() if columns.issuperset(ratio.columns)]
    taken = {column for name in ratios for column in RATIOS[name].columns}
    has_value = lambda column: any(outcome[column] is not None for outcome in outcomes)
    single = [column for column in outcomes[0] if column not in taken and has_value(column)]
    for column in single:
        if any(type(outcome[column]) is int for outcome in outcomes):
            raise ValueError(f"column {column!r} is a count of no ratio in RATIOS; give a bool, a float or a ratio")
    return ratios + single


def _is_proportion(outcomes: Sequence[Outcome], metric: str) -> bool:
    return metric not in RATIOS and any(isinstance(outcome[metric], bool) for outcome in outcomes)


def _examples_of_both(
    first: Sequence[Outcome], second: Sequence[Outcome], metric: str
) -> tuple[list[Outcome], list[Outcome]]:
    """The outcomes of the examples for which both have a value."""
    if metric in RATIOS:
        return list(first), list(second)
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a[metric] is not None and b[metric] is not None]
    if not pairs:
        raise ValueError(f"compare: {metric}: there is no example for which both have a value")
    return [a for a, _ in pairs], [b for _, b in pairs]


def _columns(outcomes: Sequence[Outcome], metric: str) -> tuple[Float[np.ndarray, "examples columns"], Statistic, bool]:
    if metric in RATIOS:
        ratio = RATIOS[metric]
        table = np.array([[float(outcome[column] or 0) for column in ratio.columns] for outcome in outcomes])
        return table, ratio.statistic, ratio.bounded
    values = np.array([float(outcome[metric]) for outcome in outcomes if outcome[metric] is not None])
    if np.any((values < 0) | (values > 1)):
        raise ValueError(f"{metric}: values of a mean must lie in [0, 1], got {values.min()} to {values.max()}")
    return mean_columns(values), ratio_of_sums, True
