"""Is a model as good for every group, and does it exaggerate what the data says of groups?

Pure functions on outcomes and the groups of their examples.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from sft_jax.evaluation.metrics import Metric, higher_is_better, metrics_in
from sft_jax.evaluation.scorers.cases import Outcome
from sft_jax.evaluation.scoring import score_of
from sft_jax.evaluation.statistics import RESAMPLES, Score, bca_limits, wilson

LEAST_IN_GROUP = 2  # examples, without which a value has no interval


@dataclasses.dataclass(frozen=True)
class GroupScores:
    """A metric by group.

    Attributes:
        scores: group -> score, sorted by name.
        examples: group -> number of examples with a value.
        best, worst: groups; where a metric has no better end, the highest and the lowest.
        gap: of the values of these two, which is never below 0, with its interval.
        p_value: of a permutation test that the groups do not differ: they are exchanged among the examples.
    """

    scores: Mapping[str, Score]
    examples: Mapping[str, int]
    best: str
    worst: str
    gap: Score
    p_value: float


def group_scores(outcomes: Sequence[Outcome], groups: Sequence[str], seed: int) -> dict[str, GroupScores]:
    """Metric -> its scores by group.

    The interval of the gap is a BCa bootstrap that resamples within groups; each resample has its own best and worst
    group. A gap of several groups is above 0 also where they do not differ: whether they do is what `p_value` says.
    A group with fewer than two values of a metric is left out of it, and a metric with fewer than two groups is left
    out.

    Raises:
        ValueError: unequal lengths, or fewer than two groups.
    """
    if len(outcomes) != len(groups):
        raise ValueError(f"group_scores: {len(outcomes)} outcomes and {len(groups)} groups")
    if len(set(groups)) < 2:
        raise ValueError(f"group_scores: at least two groups are compared, got {sorted(set(groups))}")
    results = {}
    for name, metric in metrics_in(outcomes).items():
        members: dict[str, list[Outcome]] = {group: [] for group in sorted(set(groups))}
        for outcome, group in zip(outcomes, groups, strict=True):
            if metric.has_value(outcome):
                members[group].append(outcome)
        members = {group: found for group, found in members.items() if len(found) >= LEAST_IN_GROUP}
        if len(members) > 1:
            results[name] = _of_metric(name, metric, members, seed)
    return results


def _of_metric(name: str, metric: Metric, members: Mapping[str, Sequence[Outcome]], seed: int) -> GroupScores:
    scores = {group: score_of(metric, found, seed) for group, found in members.items()}
    by_value = sorted(scores, key=lambda group: scores[group].value)
    worst, best = (by_value[-1], by_value[0]) if higher_is_better(name) is False else (by_value[0], by_value[-1])
    tables = [metric.table(found) for found in members.values()]
    low, high = scores[by_value[0]], scores[by_value[-1]]
    value = high.value - low.value
    limits = bca_limits(tables, lambda sums: _gap(metric, sums), seed=seed)
    if limits is None:  # no spread: the two single intervals by square-and-add, as `paired_difference` has it
        limits = (
            max(0.0, value - math.hypot(high.value - high.low, low.high - low.value)),
            value + math.hypot(high.high - high.value, low.value - low.low),
        )
    examples = {group: len(found) for group, found in members.items()}
    return GroupScores(scores, examples, best, worst, Score(value, *limits), _p_value(metric, tables, seed))


def _gap(metric: Metric, sums: Sequence[Float[np.ndarray, "... columns"]]) -> Float[np.ndarray, "..."]:
    values = np.stack(np.broadcast_arrays(*(metric.statistic(one) for one in sums)))
    return np.asarray(values.max(0) - values.min(0))


def _p_value(metric: Metric, tables: Sequence[Float[np.ndarray, "_ columns"]], seed: int) -> float:
    rng, together = np.random.default_rng(seed), np.concatenate(tables)
    starts = np.cumsum([0, *map(len, tables[:-1])])
    observed = float(_gap(metric, [table.sum(0) for table in tables]))
    chunk = max(1, 1_000_000 // together.size)
    hits, left = 0, RESAMPLES
    while left:
        orders = rng.permuted(np.tile(np.arange(len(together)), (min(chunk, left), 1)), axis=1)
        sums = np.add.reduceat(together[orders], starts, axis=1)
        hits += int(np.sum(_gap(metric, list(np.moveaxis(sums, 1, 0))) >= observed - 1e-9))
        left -= len(orders)
    return (1 + hits) / (1 + RESAMPLES)


@dataclasses.dataclass(frozen=True)
class BiasAmplification:
    """How much predictions exaggerate the share of a group in a label.

    Attributes:
        mean: over the label-group pairs of `rows`, in shares; above 0: exaggerated; with its interval.
        rows: {"label", "group", "data_share", "predicted_share", "amplification"}, for each label the groups that are
            over-represented in the data. The last two are None for a label that is never predicted.
    """

    mean: Score
    rows: Sequence[Mapping[str, Any]]


def bias_amplification(
    predicted: Sequence[str], expected: Sequence[str], groups: Sequence[str], seed: int
) -> BiasAmplification:
    """Bias amplification after Zhao et al. 2017 ("Men also like shopping"), with a bootstrap interval over examples.

    For each label, the share of a group among the examples with that label: in the data (`expected`), and among the
    predictions. A group is over-represented in a label where its share in the data is above 1 / number of groups. The
    amplification of such a pair is predicted share - share in the data; the mean is over these pairs, as of the full
    data; a label that is never predicted has no share and is left out. Predictions that are no label do not count.
    Where resamples do not spread (all predictions are right) the interval is as wide on both sides as Wilson's of 0.

    Raises:
        ValueError: unequal lengths, fewer than two groups, no group is over-represented in a label, or no such label is
            ever predicted.
    """
    if not len(predicted) == len(expected) == len(groups):
        raise ValueError(
            f"bias_amplification: {len(predicted)} predictions, {len(expected)} labels and {len(groups)} groups"
        )
    if len(set(groups)) < 2:
        raise ValueError(f"bias_amplification: at least two groups are compared, got {sorted(set(groups))}")
    counted = _counted(predicted, expected, groups)
    table, shares, is_over = counted.table, counted.shares, counted.is_over
    if not is_over.any():
        raise ValueError("bias_amplification: no group is over-represented in any label of the data")
    if not counted.is_predicted:
        raise ValueError("bias_amplification: no label in which a group is over-represented is ever predicted")

    def mean(sums: Float[np.ndarray, "... columns"]) -> Float[np.ndarray, "..."]:
        found = _shares(sums.reshape(*sums.shape[:-1], *table.shape[1:]))
        changes = (found[..., 1, :, :] - found[..., 0, :, :])[..., is_over]
        counts = ~np.isnan(changes)
        return np.asarray(np.where(counts, changes, 0.0).sum(-1) / np.maximum(counts.sum(-1), 1))

    flat = table.reshape(len(groups), -1)
    value = float(mean(flat.sum(0)))
    limits = bca_limits([flat], lambda sums: mean(sums[0]), seed=seed)
    if limits is None:
        half = wilson(0, len(groups)).high
        limits = value - half, value + half
    rows = [_row(counted.labels[i], counted.kinds[j], shares[:, i, j]) for i, j in np.argwhere(is_over)]
    return BiasAmplification(Score(value, *limits), rows)


def has_bias_amplification(predicted: Sequence[str], expected: Sequence[str], groups: Sequence[str]) -> bool:
    """Whether a group is over-represented in a label that is predicted, so that there is something to exaggerate."""
    return len(set(groups)) > 1 and _counted(predicted, expected, groups).is_predicted


@dataclasses.dataclass(frozen=True)
class _Counted:
    """Labels of examples in the data (0) and in the predictions (1), by group.

    Attributes:
        labels, kinds: of labels and groups, sorted.
        table: 1 where an example has the label and is of the group.
        shares: of groups in labels; NaN for a label without examples.
        is_over: the group is over-represented in the label of the data.
    """

    labels: Sequence[str]
    kinds: Sequence[str]
    table: Float[np.ndarray, "examples 2 labels groups"]
    shares: Float[np.ndarray, "2 labels groups"]
    is_over: Bool[np.ndarray, "labels groups"]

    @property
    def is_predicted(self) -> bool:
        """A label in which a group is over-represented is predicted."""
        return bool(np.isfinite(self.shares[1][self.is_over]).any())


def _counted(predicted: Sequence[str], expected: Sequence[str], groups: Sequence[str]) -> _Counted:
    labels, kinds = sorted(set(expected)), sorted(set(groups))
    table = np.zeros((len(groups), 2, len(labels), len(kinds)))
    for row, group, *given in zip(table, groups, expected, predicted, strict=True):
        for counts, label in zip(row, given, strict=True):
            if label in labels:
                counts[labels.index(label), kinds.index(group)] = 1
    shares = _shares(table.sum(0))
    return _Counted(labels, kinds, table, shares, shares[0] > 1 / len(kinds) + 1e-12)


def _shares(counts: Float[np.ndarray, "... labels groups"]) -> Float[np.ndarray, "... labels groups"]:
    """Of the groups in each label; NaN for a label without examples."""
    totals = counts.sum(-1, keepdims=True)
    return np.where(totals > 0, counts / np.maximum(totals, 1), np.nan)


def _row(label: str, group: str, shares: Float[np.ndarray, "2"]) -> dict[str, Any]:
    data, predicted = (None if np.isnan(share) else float(share) for share in shares)
    change = None if predicted is None else predicted - data
    named = {"label": label, "group": group, "data_share": data, "predicted_share": predicted}
    return named | {"amplification": change}
