"""Learning curves of known laws."""

import numpy as np
import pytest

from sft_jax.audit.checks import RunPoint
from sft_jax.audit.learning_curve import learning_curve

SIZES = (100, 200, 400, 800, 1600)


def points(law, sizes=SIZES):
    return [RunPoint(size, law(size)) for size in sizes]


@pytest.mark.parametrize(
    ("law", "gain"),
    [
        (lambda n: 1 + 10 * n**-0.5, 10 * (1600**-0.5 - 3200**-0.5)),
        (lambda n: 5 * n**-0.2, 5 * (1600**-0.2 - 3200**-0.2)),
        (lambda n: 2.0, 0.0),
        (lambda n: 2.0 + n / 1e4, 0.0),  # more data made it worse: nothing is gained, and no gain is made up
    ],
)
def test_power_laws_are_found_again(law, gain):
    curve = learning_curve(points(law))
    assert curve.gain == pytest.approx(gain, rel=0.02, abs=1e-6)
    assert curve.error < 0.02 * gain + 1e-6


def test_noise_shows_in_the_error():
    rng = np.random.default_rng(0)
    noisy = learning_curve(points(lambda n: 2 + 0.05 * rng.standard_normal()))
    assert noisy.error > 0.005
    clean = learning_curve(points(lambda n: 2 + 10 * n**-0.5))
    assert clean.error < noisy.error / 10


def test_few_sizes_are_compared():
    curve = learning_curve(points(lambda n: {100: 3.0, 400: 2.0}[n], (400, 100)))
    assert (curve.gain, curve.error) == (0.5, None)  # 1.0 over two doublings
    assert [point.examples for point in curve.points] == [100, 400]
    assert learning_curve(points(lambda n: 1.0, (5, 5))) is None
    assert learning_curve([]) is None


def test_the_best_run_of_a_size_counts():
    curve = learning_curve([RunPoint(1, 3.0, "a"), RunPoint(1, 2.0, "b"), RunPoint(2, 1.5, "c")])
    assert [point.name for point in curve.points] == ["b", "c"]
    assert curve.gain == 0.5
