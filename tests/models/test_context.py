"""How tokens are dealt out to devices."""

import numpy as np
import pytest

from sft_jax.models.context import dealt_order


@pytest.mark.parametrize(
    ("length", "parts", "expected"),
    [
        (5, 1, [0, 1, 2, 3, 4]),
        (8, 2, [0, 1, 6, 7, 2, 3, 4, 5]),
        (8, 4, [0, 7, 1, 6, 2, 5, 3, 4]),
    ],
)
def test_order(length: int, parts: int, expected: list[int]):
    assert dealt_order(length, parts).tolist() == expected


def test_every_part_has_as_many_pairs_of_a_query_and_a_key():
    pairs = (dealt_order(48, 4).reshape(4, -1) + 1).sum(axis=1)
    assert len(set(np.asarray(pairs).tolist())) == 1


def test_a_length_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"data\.sequence_length=10 must be a multiple of 4"):
        dealt_order(10, 2)
