"""Sorting in blocks gives what one stable sort of all gives."""

import numpy as np
import pytest

from sft_jax.data import sorting

COUNTS = (0, 1, 7, 1000)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(sorting, "BLOCK_ROWS", 64)


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


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("but", [None, 0, 2**64 - 1])
def test_rows_by_hash_come_in_parts_that_equal_ones_share(count, but):
    rng = np.random.default_rng(0)
    hashes = rng.choice(np.append(rng.integers(0, 2**64, 30, np.uint64), np.array([0, 2**64 - 1], np.uint64)), count)
    parts = list(sorting.by_hash(hashes, but))
    expected = np.argsort(hashes, kind="stable")
    np.testing.assert_array_equal(
        np.concatenate(parts), expected[hashes[expected] != but] if but is not None else expected
    )
    seen = [set(hashes[part].tolist()) for part in parts]
    assert sum(map(len, seen)) == len(set.union(*seen))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
@pytest.mark.parametrize("different", [1, 5, 200])
@pytest.mark.parametrize("count", COUNTS)
def test_rows_by_a_small_number(count, different, dtype):
    rng = np.random.default_rng(0)
    numbers, names = rng.integers(0, different, count).astype(dtype), rng.integers(0, 99, count).astype(np.int32)
    counts = sorting.counted(numbers, different)
    assert counts.tolist() == np.bincount(numbers, minlength=different).tolist()
    expected = np.argsort(numbers, kind="stable")
    np.testing.assert_array_equal(sorting.by_number(numbers, counts), expected)
    np.testing.assert_array_equal(sorting.by_number(numbers, counts, names), names[expected])


def test_more_rows_than_numbers_are_refused():
    with pytest.raises(ValueError, match=r"2,147,483,648 rows cannot be ordered together: at most 2,147,483,647"):
        sorting.row_numbers(2**31)
