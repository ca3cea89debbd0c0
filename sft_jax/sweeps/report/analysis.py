"""From the values of runs to what is found: settings over seeds, differences to a baseline, the best, what it costs.

Runs are put together over their seeds and over nothing else. Settings are compared by the seeds that both have.
"""

import collections
import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.evaluation.metrics import metrics_in
from sft_jax.evaluation.report.verdicts import called_by
from sft_jax.evaluation.seeds import (
    mean_over_seeds,
    paired_over_seeds,
    paired_over_seeds_and_rows,
    row_contributions,
)
from sft_jax.evaluation.statistics import holm
from sft_jax.sweeps.names import short_keys
from sft_jax.sweeps.report.quantities import COSTS, Quantity, Taken, metric_of_rows, rows_of, take
from sft_jax.sweeps.report.reading import DONE, FAILED, Runs, SweptRun
from sft_jax.sweeps.settings import exact_text, setting_name

LEAST_SEEDS = 3  # with fewer, a difference cannot be told from what seeds do

Found = dict[str, Any]
Group = list[tuple[SweptRun, Taken | None]]  # the runs of a setting with their values


class BaselineError(ValueError):
    """The baseline is no setting of the sweep."""


def analyse(
    runs: Runs, quantity: Quantity, baseline: Mapping[str, str] | None = None, also: Sequence[Quantity] = ()
) -> Found:
    """All that is found of a quantity, in the form that the package describes.

    Args:
        runs: of the sweep.
        quantity: what is asked for.
        baseline: text of the values of some factors, by path or short name; None: the first setting.
        also: further quantities, of which the mean of each setting is shown beside it.

    Raises:
        BaselineError: there is no such factor, or the values fit no setting or several.
    """
    groups = _groups(runs, quantity)
    base = _baseline(runs, {name: values for name, (values, _) in groups.items()}, baseline)
    settings = [_setting(values, name, group, also) for name, (values, group) in groups.items()]
    by_name = {name: group for name, (_, group) in groups.items()}
    _compare(settings, by_name, base, quantity)
    return {
        "root": str(runs.root),
        "sweep": runs.sweep,
        "created": datetime.date.today().isoformat(),
        "metric": quantity.name,
        "also": [other.name for other in also],
        "at": quantity.at if isinstance(quantity.at, str) else f"step {quantity.at}",
        "better": {True: "higher", False: "lower", None: None}[quantity.better],
        "factors": list(runs.factors),
        "states": dict(collections.Counter(run.state for run in runs.runs)),
        "baseline": base,
        "settings": settings,
        "best": _best(settings, by_name, quantity),
        "fronts": _fronts(settings, quantity.better),
        "failed": [
            {"name": run.name, "state": run.state, "step": run.end.step if run.end else None, "error": run.error}
            for run in runs.runs
            if run.state in FAILED
        ],
        "notes": _notes(runs, settings, quantity),
    }


def _groups(runs: Runs, quantity: Quantity) -> dict[str, tuple[Mapping[str, Any], Group]]:
    """The name of a setting -> its values, and its runs, in the order of the sweep.

    A run that repeats setting and seed of another has no value: it says nothing of other seeds.
    """
    groups: dict[str, tuple[Mapping[str, Any], Group]] = {}
    for run in runs.runs:
        group, taken = groups.setdefault(setting_name(run.setting), (run.setting, []))[1], take(run, quantity)
        group.append((run, None if run.seed in _by_seed(group) else taken))
    return groups


def _setting(values: Mapping[str, Any], name: str, group: Group, also: Sequence[Quantity]) -> Found:
    others = {other.name: [_value(run, other) if one else None for run, one in group] for other in also}
    taken = [one for _, one in group if one is not None]
    there = [cost for cost in COSTS if taken and all(cost in one.costs for one in taken)]
    return {
        "name": name,
        "values": dict(values),
        "score": _score([one.value for one in taken]),
        "also": {other: _score([value for value in of if value is not None]) for other, of in others.items()},
        "runs": [
            {
                "name": run.name,
                "seed": run.seed,
                "state": run.state,
                "step": one.step if one else None,
                "value": one.value if one else None,
                "also": {other: of[number] for other, of in others.items()},
                "costs": dict(one.costs) if one else {},
            }
            for number, (run, one) in enumerate(group)
        ],
        "costs": {cost: float(np.mean([one.costs[cost] for one in taken])) for cost in there},
        "difference": None,
    }


def _value(run: SweptRun, quantity: Quantity) -> float | None:
    """The value of a run alone."""
    taken = take(run, quantity)
    return None if taken is None else taken.value


def _score(values: Sequence[float]) -> dict[str, float | None] | None:
    if not values:
        return None
    if len(values) < 2:
        return {"value": float(values[0]), "low": None, "high": None}
    return mean_over_seeds(np.array(values)).as_dict()


def _baseline(runs: Runs, settings: Mapping[str, Mapping[str, Any]], asked: Mapping[str, str] | None) -> str | None:
    """The name of the setting to compare with; None where there is nothing to compare."""
    if not asked:
        return next(iter(settings)) if len(settings) > 1 else None
    paths = {key: path for path, key in short_keys(runs.factors).items()} | {path: path for path in runs.factors}
    unknown = [name for name in asked if name not in paths]
    if unknown:
        raise BaselineError(
            f"--baseline: {unknown[0]} is not a factor of this sweep; there are {', '.join(runs.factors)}"
        )
    wanted = {paths[name]: value for name, value in asked.items()}
    fits = [
        name
        for name, values in settings.items()
        if all(_is_same(values[path], value) for path, value in wanted.items())
    ]
    text = ",".join(f"{name}={value}" for name, value in asked.items())
    if not fits:
        raise BaselineError(f"--baseline={text}: matches no setting; the first is {next(iter(settings))}")
    if len(fits) > 1:
        raise BaselineError(f"--baseline={text}: {len(fits)} settings match, {fits[0]} for one; name more fields")
    return fits[0]


def _is_same(value: Any, text: str) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(text) == value
        except ValueError:
            return False
    return exact_text(value).lower() == text.lower()


def _by_seed(group: Group) -> dict[int | None, tuple[SweptRun, Taken]]:
    return {run.seed: (run, one) for run, one in group if one is not None}


def _paired(first: Group, second: Group) -> tuple[list, list]:
    """The runs of both with the same seeds, in the same order."""
    one, other = _by_seed(first), _by_seed(second)
    seeds = [seed for seed in one if seed in other]
    return [one[seed] for seed in seeds], [other[seed] for seed in seeds]


def _compare(settings: Sequence[Found], groups: Mapping[str, Group], base: str | None, quantity: Quantity) -> None:
    """Gives every setting its difference to the baseline."""
    tested = []
    for setting in settings:
        if base is None or setting["name"] == base:
            continue
        first, second = _paired(groups[base], groups[setting["name"]])
        if not first:
            continue
        values = [np.array([one.value for _, one in pairs]) for pairs in (first, second)]
        found: Found = {"value": float(np.mean(values[1] - values[0])), "low": None, "high": None}
        found |= {"seeds": len(first), "p_value": None, "p_holm": None, "called": None}
        if len(first) > 1:
            score, p_value = paired_over_seeds(*values)
            found |= score.as_dict()
            if len(first) >= LEAST_SEEDS:
                found["p_value"] = p_value
                tested.append(found)
        setting["difference"] = found
    for found, corrected in zip(tested, holm([found["p_value"] for found in tested]), strict=True):
        found |= {"p_holm": corrected, "called": called_by(found["value"], corrected, quantity.better)}


def _best(settings: Sequence[Found], groups: Mapping[str, Group], quantity: Quantity) -> Found | None:
    """The best setting, and whether it is told from the next.

    That the two are the first and the second of many needs no correction: a two-sided test of the winner against the
    runner-up holds its level (Hung and Fithian 2019).
    """
    scored = [setting for setting in settings if setting["score"] is not None]
    if quantity.better is None or not scored:
        return None
    ranked = sorted(scored, key=lambda setting: setting["score"]["value"], reverse=quantity.better)
    best = ranked[0]["name"]
    if len(ranked) < 2:
        return {"setting": best, "next": None}
    following = ranked[1]["name"]
    first, second = _paired(groups[following], groups[best])
    found: Found = {"setting": following, "value": None, "low": None, "high": None, "p_value": None}
    found |= {"seeds": len(first), "rows": None}
    if first:
        values = [np.array([one.value for _, one in pairs]) for pairs in (first, second)]
        found["value"] = float(np.mean(values[1] - values[0]))
    if len(first) >= LEAST_SEEDS:
        tables = _row_tables(first, second, quantity)
        score, p_value = paired_over_seeds(*values) if tables is None else paired_over_seeds_and_rows(*tables)
        found |= {**score.as_dict(), "p_value": p_value, "rows": None if tables is None else tables[0].shape[1]}
    return {"setting": best, "next": found}


def _row_tables(first: list, second: list, quantity: Quantity) -> list[np.ndarray] | None:
    """What each row adds to the score of each run, [seeds, rows] for both; None where rows have no scores."""
    of_runs = [[rows_of(run, quantity, one.step) for run, one in pairs] for pairs in (first, second)]
    if any(rows is None for of in of_runs for rows in of):
        return None
    ids = [row for row in of_runs[0][0] if all(row in rows for of in of_runs for rows in of)]
    outcomes = [[[rows[row] for row in ids] for rows in of] for of in of_runs]
    if len(ids) < 2:
        return None
    metric = metrics_in(*(system for of in outcomes for system in of)).get(metric_of_rows(quantity))
    if metric is None:
        return None
    has = [place for place in range(len(ids)) if all(metric.has_value(one[place]) for of in outcomes for one in of)]
    if len(has) < 2:
        return None
    return [np.stack([row_contributions(metric, [one[place] for place in has]) for one in of]) for of in outcomes]


def _fronts(settings: Sequence[Found], better: bool | None) -> dict[str, list[str]]:
    """Cost -> the settings of which no other is at least as good and as cheap, and better in one of the two."""
    fronts = {}
    for cost in COSTS:
        there = [one for one in settings if one["score"] is not None and cost in one["costs"]]
        if better is None or len({one["costs"][cost] for one in there}) < 2:
            continue
        sign = -1 if better else 1
        points = {one["name"]: (one["costs"][cost], sign * one["score"]["value"]) for one in there}
        fronts[cost] = [name for name, point in points.items() if not _is_beaten(point, points.values())]
    return fronts


def _is_beaten(point: tuple[float, float], others: Iterable[tuple[float, float]]) -> bool:
    """Whether there is one that is as low in both, and lower in one."""
    return any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in others)


def _notes(runs: Runs, settings: Sequence[Found], quantity: Quantity) -> list[str]:
    notes = []
    unfinished = sum(run.state not in (DONE, *FAILED) for run in runs.runs)
    if unfinished:
        notes.append(f"{unfinished} of {len(runs.runs)} runs are not finished: this report is of what there is so far.")
    repeated, lacking = [], []
    for one in settings:
        counted = {run["seed"] for run in one["runs"] if run["value"] is not None}
        for run in one["runs"]:
            if run["state"] == DONE and run["value"] is None:
                (repeated if run["seed"] in counted else lacking).append(run["name"])
    if repeated:
        notes.append(f"Not counted, since another run has the same setting and seed: {_first_of(repeated)}.")
    if lacking:
        notes.append(f"Finished, but without a finite {quantity.name}: {_first_of(lacking)}.")
    seeds = {sum(run["value"] is not None for run in one["runs"]) for one in settings}
    if seeds and min(seeds) < LEAST_SEEDS:
        notes.append(f"Some settings have fewer than {LEAST_SEEDS} seeds: they cannot be told from others.")
    elif len(seeds) > 1:
        notes.append(f"Settings have between {min(seeds)} and {max(seeds)} seeds; pairs are compared by those of both.")
    if quantity.better is None:
        notes.append(
            f"Whether more or less of {quantity.name} is better is not known: say --better=higher or --better=lower."
        )
    return notes


def _first_of(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"
