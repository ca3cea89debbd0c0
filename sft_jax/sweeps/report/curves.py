"""Learning curves of settings: the mean over seeds at each step, and from the lowest to the highest seed."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from sft_jax.sweeps.report.quantities import SUPERVISED, TOKENS, Quantity, seconds_of
from sft_jax.sweeps.report.reading import FAILED, Runs, SweptRun
from sft_jax.sweeps.settings import setting_name

AXES = {
    "steps": "steps",
    "tokens": "tokens",
    "supervised_tokens": "supervised tokens",
    "seconds": "seconds of training",
}


@dataclasses.dataclass(frozen=True)
class Curve:
    """A curve of a setting; the points of a curve are where all its runs have a value."""

    name: str
    x: Float[np.ndarray, " points"]
    mean: Float[np.ndarray, " points"]
    low: Float[np.ndarray, " points"]
    high: Float[np.ndarray, " points"]
    seeds: int


def curves_of(runs: Runs, quantity: Quantity, axis: str) -> list[Curve]:
    """A curve for each setting, in the order of the sweep; those of evaluations have none.

    Runs that failed are left out. Where seeds differ in tokens or time at a step, the point stands at their mean.
    """
    groups: dict[str, list[SweptRun]] = {}
    for run in runs.runs:
        if run.state not in FAILED and run.log.there.get(quantity.name, np.zeros(0)).any():
            groups.setdefault(setting_name(run.setting), []).append(run)
    made = [_curve(name, group, quantity.name, axis) for name, group in groups.items()]
    return [curve for curve in made if len(curve.x)]


def _curve(name: str, group: Sequence[SweptRun], metric: str, axis: str) -> Curve:
    tables = [_points(run, metric, axis) for run in group]
    steps = sorted(set.intersection(*(set(table) for table in tables)))
    points = np.array([[table[step] for step in steps] for table in tables], np.float64).reshape(len(tables), -1, 2)
    x, values = points[..., 0].mean(0), points[..., 1]
    return Curve(name, x, values.mean(0), values.min(0, initial=np.inf), values.max(0, initial=-np.inf), len(group))


def _points(run: SweptRun, metric: str, axis: str) -> dict[int, tuple[float, float]]:
    """Step -> (place on the axis, value), of finite values."""
    log, start = run.log, np.where(run.log.steps == 0, 0.0, np.nan)
    places = {
        "steps": lambda: log.steps.astype(np.float64),
        "seconds": lambda: seconds_of(run),
        "tokens": lambda: np.where(log.there[TOKENS], log.columns[TOKENS], start),
        "supervised_tokens": lambda: np.where(log.there[SUPERVISED], log.columns[SUPERVISED], start),
    }[axis]()
    values = log.columns[metric]
    return {
        int(step): (float(x), float(value))
        for step, x, value in zip(log.steps, places, values, strict=True)
        if np.isfinite(value) and np.isfinite(x)
    }
