"""Coverage of the intervals and level of the paired test: what benchmarks/interval_coverage.py measures, in small."""

import math

import numpy as np
import pytest

from benchmarks.interval_coverage import KINDS, SHARES, bca_coverage, false_positives, wilson_coverage


def test_the_coverage_of_wilsons_interval_by_hand():
    """At p = 0.02 with 50 examples the interval holds p if 0, 1 or 2 are right: 0.3642 + 0.3716 + 0.1858 = 0.9216."""
    by_hand = sum(math.comb(50, right) * 0.02**right * 0.98 ** (50 - right) for right in range(3))
    assert by_hand == pytest.approx(0.9216, abs=5e-5)
    assert wilson_coverage(0.02, 50) == pytest.approx(by_hand, abs=1e-12)


@pytest.mark.parametrize("examples", [50, 100, 300])
def test_wilsons_interval_covers_95_percent_on_average(examples):
    assert 0.945 <= np.mean([wilson_coverage(share, examples) for share in SHARES]) <= 0.955


# 200 repetitions: the standard error of 95 % is 1.5 points.
@pytest.mark.parametrize("kind", KINDS)
def test_bca_intervals_cover_about_95_percent(kind):
    draw, statistic, truth, maximum = KINDS[kind]
    assert 0.91 <= bca_coverage(draw, statistic, truth, maximum, examples=100, repetitions=200) <= 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_the_paired_test_keeps_its_level(kind):
    draw, statistic, _, _ = KINDS[kind]
    assert 0.01 <= false_positives(draw, statistic, examples=100, repetitions=200) <= 0.09
