"""Reciprocal rank fusion, by hand."""

import pytest

from sft_jax.retrieval.fusion import reciprocal_rank_fusion

CASES = [
    ([[7, 4], [4, 9]], 60, [(4, 1 / 62 + 1 / 61), (7, 1 / 61), (9, 1 / 62)]),
    ([[1, 2, 3]], 60, [(1, 1 / 61), (2, 1 / 62), (3, 1 / 63)]),
    ([[5, 3], [3, 5]], 0, [(3, 1.5), (5, 1.5)]),  # equal: the lower number first
    ([[], [2]], 60, [(2, 1 / 61)]),
    ([[], []], 60, []),
]


@pytest.mark.parametrize(("rankings", "k", "expected"), CASES)
def test_fusion(rankings, k, expected):
    fused = reciprocal_rank_fusion(rankings, k)
    assert [number for number, _ in fused] == [number for number, _ in expected]
    assert [score for _, score in fused] == pytest.approx([score for _, score in expected])
