"""Packing tables of the field, and what must hold for any sizes."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_jax.data.packing import first_fit_decreasing, pack_epoch, packing_report, supervised_capacity
from sft_jax.data.tokenized import TokenizedRows


def pack(lengths, row_tokens, supervised=None, row_targets=None):
    lengths = np.array(lengths, np.int64)
    supervised = np.zeros_like(lengths) if supervised is None else np.array(supervised, np.int64)
    bins = first_fit_decreasing(lengths, supervised, row_tokens, row_targets or row_tokens)
    return [rows.tolist() for rows in bins]


@pytest.mark.parametrize(
    ("lengths", "row_tokens", "bins"),
    [
        ([3, 4, 1], 4, [[1], [0, 2]]),  # TRL bfd: [[1,2,3],[4,5,6,7],[8]] -> [[4,5,6,7],[1,2,3,8]]
        ([5, 1, 4, 3], 5, [[0], [2, 1], [3]]),  # TRL bfd_split with nothing to split
        ([2] * 5, 4, [[0, 1], [2, 3], [4]]),
        ([], 4, []),
    ],
)
def test_tables(lengths, row_tokens, bins):
    assert pack(lengths, row_tokens) == bins


@pytest.mark.parametrize(("length", "bins"), [(2, 84), (5, 200)])
def test_number_of_bins(length, bins):
    """torchtune: 1000 rows of one length in bins of 25."""
    assert len(pack([length] * 1000, 25)) == bins


@pytest.mark.parametrize(("lengths", "supervised"), [([5, 2], [0, 0]), ([4, 2], [3, 0])])
def test_rows_are_never_cut(lengths, supervised):
    """On purpose unlike TRL's bfd, bfd_split and wrapped, which cut [1..5] at 4: a row too big is an error."""
    with pytest.raises(ValueError, match=r"Row 0 has \d (supervised )?tokens, a row of the batch holds"):
        pack(lengths, 4, supervised, 2)


def test_closed_at_either_bound():
    """By tokens alone one bin would do; 2 targets a bin ask for two."""
    assert pack([3, 3, 2, 2], 10, [1, 1, 1, 1], 10) == [[0, 1, 2, 3]]
    assert pack([3, 3, 2, 2], 10, [1, 1, 1, 1], 2) == [[0, 1], [2, 3]]
    assert pack([4, 2, 2], 10, [0, 2, 2], 2) == [[1, 0], [2]]  # the size of a row is its larger share


sizes = st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1)), min_size=1, max_size=120)


def arrays(drawn):
    lengths = np.array([length for length, _ in drawn], np.int64)
    return lengths, np.array([int(share * (length - 1)) for length, share in drawn], np.int64)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    drawn=sizes,
    extra=st.integers(0, 30),
    extra_targets=st.integers(0, 10),
    epoch=st.integers(0, 3),
    packing=st.booleans(),
)
def test_every_row_once_and_no_bin_over_a_bound(drawn, extra, extra_targets, epoch, packing):
    lengths, supervised = arrays(drawn)
    row_tokens, row_targets = int(lengths.max()) + extra, max(int(supervised.max()), 1) + extra_targets
    bounds = {"row_tokens": row_tokens, "row_targets": row_targets}
    bins = pack_epoch(lengths, supervised, **bounds, seed=3, epoch=epoch, packing=packing)
    assert sorted(np.concatenate(bins).tolist()) == list(range(len(lengths)))
    assert all(lengths[rows].sum() <= row_tokens for rows in bins)
    assert all(supervised[rows].sum() <= row_targets for rows in bins)
    again = pack_epoch(lengths, supervised, **bounds, seed=3, epoch=epoch, packing=packing)
    assert [rows.tolist() for rows in bins] == [rows.tolist() for rows in again]
    if packing:  # first fit: no two bins could have been one
        tokens = np.array([lengths[rows].sum() for rows in bins])
        targets = np.array([supervised[rows].sum() for rows in bins])
        joined = (tokens[:, None] + tokens <= row_tokens) & (targets[:, None] + targets <= row_targets)
        assert not (joined & ~np.eye(len(bins), dtype=bool)).any()
    else:
        assert all(len(rows) == 1 for rows in bins)


def test_order_depends_on_seed_and_epoch():
    lengths, supervised = np.full(50, 3, np.int64), np.ones(50, np.int64)
    orders = {
        tuple(
            np.concatenate(
                pack_epoch(lengths, supervised, row_tokens=7, row_targets=7, seed=seed, epoch=epoch)
            ).tolist()
        )
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 4


def test_company_in_a_bin_varies():
    """Not only the order of the bins: which rows share one differs from epoch to epoch."""
    lengths, supervised = np.full(50, 3, np.int64), np.ones(50, np.int64)
    company = {
        frozenset(
            frozenset(rows.tolist())
            for rows in pack_epoch(lengths, supervised, row_tokens=7, row_targets=7, seed=0, epoch=epoch)
        )
        for epoch in range(3)
    }
    assert len(company) == 3


def test_order_is_pinned():
    """A change here changes the data order of every run: resuming runs of older versions breaks."""
    bins = pack_epoch(
        np.array([2, 3, 4, 1, 2], np.int64), np.ones(5, np.int64), row_tokens=5, row_targets=5, seed=0, epoch=0
    )
    assert [rows.tolist() for rows in bins] == [[1, 0], [2, 3], [4]]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(drawn=sizes, extra=st.integers(0, 60), quantile=st.floats(0, 1), packing=st.booleans())
def test_supervised_capacity_never_loses_a_token(drawn, extra, quantile, packing):
    lengths, supervised = arrays(drawn)
    row_tokens = int(lengths.max()) + extra
    capacity = supervised_capacity(lengths, supervised, row_tokens, quantile, packing)
    assert supervised.max() <= capacity <= row_tokens
    assert capacity == row_tokens or (capacity % 8 == 0 and capacity < 0.9 * row_tokens)
    pack_epoch(lengths, supervised, row_tokens=row_tokens, row_targets=capacity, seed=0, epoch=0)


@pytest.mark.parametrize(
    ("lengths", "supervised", "quantile", "capacity"),
    [
        ([50] * 8, [10] * 8, 1.0, 24),  # bins of two rows: 20 targets, up to the next multiple of 8
        ([100] * 4, [1, 1, 1, 30], 0.5, 32),  # the median is 1, but one row has 30
        ([100] * 4, [99] * 4, 1.0, 100),  # all supervised: every position has its slot
        ([100] * 4, [80] * 4, 1.0, 80),
        ([100] * 4, [85] * 4, 1.0, 88),
        ([100] * 4, [89] * 4, 1.0, 100),  # 96 would be over 0.9
    ],
)
def test_supervised_capacity(lengths, supervised, quantile, capacity):
    found = supervised_capacity(np.array(lengths, np.int64), np.array(supervised, np.int64), 100, quantile)
    assert found == capacity


def test_packing_report():
    rows = TokenizedRows.from_rows(
        [(range(n), [0] * (n - k) + [1] * k) for n, k in [(3, 1), (3, 1), (2, 1), (2, 1)]], list("abcd")
    )
    report = packing_report(rows, row_tokens=10, row_targets=2)
    assert (report.rows, report.bins) == (4, 2)
    assert report.efficiency == 10 / 20
    assert report.target_efficiency == 4 / 4
    assert report.efficiency_without_bound == 10 / 10


def test_a_hundred_thousand_rows_pack_in_seconds():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.2, 1, 100_000), 2, 2048).astype(np.int64)
    start = time.perf_counter()
    bins = pack_epoch(lengths, lengths // 4, row_tokens=2048, row_targets=640, seed=0, epoch=0)
    assert time.perf_counter() - start < 5  # 0.4 s on an idle core
    assert lengths.sum() / (len(bins) * 2048) > 0.98
