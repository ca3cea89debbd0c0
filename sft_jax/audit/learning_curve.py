"""The learning curve: from earlier runs on parts of the data, whether more data would still lower the loss.

With four sizes or more, a power law a + b n^-c of the number of examples n (Hestness et al. 2017) is fitted; with two
or three, the gain of the latest doubling of the data is taken as the next one. The verdict uses it (verdict.py).
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

Values = Float64[np.ndarray, "points"]

_FITTED_SIZES = 4  # three numbers are fitted
_EXPONENTS = np.geomspace(0.05, 2.0, 80)


class RunPoint(NamedTuple):
    """One run: the number of examples it was trained on, and its best held-out loss."""

    examples: int
    loss: float
    name: str = ""


@dataclasses.dataclass(frozen=True)
class LearningCurve:
    """What twice the data would bring.

    Attributes:
        points: one a size, the best run of that size, by size.
        gain: how much the loss is expected to fall from the largest size to twice as much.
        error: standard error of the gain (leaving out one size at a time); None with fewer than four sizes.
    """

    points: tuple[RunPoint, ...]
    gain: float
    error: float | None


def learning_curve(points: Sequence[RunPoint]) -> LearningCurve | None:
    """The curve through runs that differ in the amount of data; None with fewer than two sizes."""
    best: dict[int, RunPoint] = {}
    for point in points:
        if point.examples not in best or point.loss < best[point.examples].loss:
            best[point.examples] = point
    chosen = tuple(best[size] for size in sorted(best))
    if len(chosen) < 2:
        return None
    sizes = np.array([point.examples for point in chosen], np.float64)
    losses = np.array([point.loss for point in chosen], np.float64)
    if len(chosen) < _FITTED_SIZES:
        doublings = np.log2(sizes[-1] / sizes[-2])
        return LearningCurve(chosen, float((losses[-2] - losses[-1]) / doublings), None)
    gain = _expected_gain(sizes, losses, sizes[-1])
    without = [_expected_gain(np.delete(sizes, i), np.delete(losses, i), sizes[-1]) for i in range(len(sizes))]
    # The jackknife (Quenouille 1956, Tukey 1958).
    error = np.sqrt((len(sizes) - 1) / len(sizes) * np.sum((np.array(without) - np.mean(without)) ** 2))
    return LearningCurve(chosen, gain, float(error))


def _expected_gain(sizes: Values, losses: Values, at: float) -> float:
    """b (n^-c - (2n)^-c) of the best power law, a and b not negative: least squares for each of many c."""
    fits = [_fit(sizes, losses, exponent) for exponent in _EXPONENTS]
    _, scale, exponent = min(fits, key=lambda fit: fit[0])
    return float(scale * (at**-exponent - (2 * at) ** -exponent))


def _fit(sizes: Values, losses: Values, exponent: float) -> tuple[float, float, float]:
    """Squared error, b and c of the best a and b for this c."""
    falling = sizes**-exponent
    centred = falling - falling.mean()
    scale = max(float(centred @ (losses - losses.mean()) / (centred @ centred)), 0.0)
    floor = float((losses - scale * falling).mean())
    if floor < 0:
        floor, scale = 0.0, max(float(falling @ losses / (falling @ falling)), 0.0)
    return float(np.sum((losses - floor - scale * falling) ** 2)), scale, exponent
