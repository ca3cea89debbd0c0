"""Orders of example numbers, beside stable sorts."""

import numpy as np
import pytest

from sft_jax.data import sorting

COUNTS = (0, 1, 7, 1000)


def plainly_shuffled(count, *key):
    hashes = np.random.PCG64(np.random.SeedSequence(key)).random_raw(count)
    return np.argsort(hashes, kind="stable")


@pytest.mark.parametrize("count", COUNTS)
def test_a_permutation_is_the_order_of_random_numbers(count):
    found = sorting.permutation(count, 3, 4)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, plainly_shuffled(count, 3, 4))


@pytest.mark.parametrize("wanted", [1, 50, 999, 5000])
@pytest.mark.parametrize("count", COUNTS)
def test_its_begin_is_found_without_the_rest(count, wanted):
    np.testing.assert_array_equal(
        sorting.begin_of_permutation(count, wanted, 3, 4), plainly_shuffled(count, 3, 4)[:wanted]
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
@pytest.mark.parametrize("different", [1, 5, 200])
@pytest.mark.parametrize("count", COUNTS)
def test_examples_by_a_small_number(count, different, dtype):
    rng = np.random.default_rng(0)
    numbers, names = rng.integers(0, different, count).astype(dtype), rng.integers(0, 99, count).astype(np.int32)
    expected = np.argsort(numbers, kind="stable")
    np.testing.assert_array_equal(sorting.by_number(numbers), expected)
    np.testing.assert_array_equal(sorting.by_number(numbers, names), names[expected])


def test_more_examples_than_numbers_are_refused():
    with pytest.raises(ValueError, match=r"2,147,483,648 examples cannot be ordered together: at most 2,147,483,647"):
        sorting.empty_indices(2**31)
