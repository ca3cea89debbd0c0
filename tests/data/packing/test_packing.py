"""Packing tables of the field, and what must hold for any sizes."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_jax.data import packing as packing_module
from sft_jax.data.packing import (
    PACKINGS,
    first_fit_decreasing,
    get_packing,
    pack_epoch,
    packing_report,
    supervised_capacity,
)
from sft_jax.data.packing import bins as bins_module
from sft_jax.data.packing.bins import Bins, Bounds
from sft_jax.data.tokenized import TokenizedExamples

DECREASING = ("best_fit", "first_fit")


def pack(name, lengths, sequence_length, supervised=None, sequence_targets=None, segments=0):
    lengths = np.array(lengths, np.int64)
    supervised = np.zeros_like(lengths) if supervised is None else np.array(supervised, np.int64)
    bins = get_packing(name)(
        lengths, supervised, Bounds(sequence_length, sequence_targets or sequence_length, segments)
    )
    return [members.tolist() for members in bins]


@pytest.mark.parametrize("name", DECREASING)
@pytest.mark.parametrize(
    ("lengths", "sequence_length", "bins"),
    [
        ([3, 4, 1], 4, [[1], [0, 2]]),  # TRL bfd: [[1,2,3],[4,5,6,7],[8]] -> [[4,5,6,7],[1,2,3,8]]
        ([4, 2, 4, 1], 4, [[0], [2], [1, 3]]),  # TRL bfd at 4, of examples that are not cut
        ([5, 1, 4, 3], 5, [[0], [2, 1], [3]]),  # TRL bfd_split with nothing to split
        ([2] * 5, 4, [[0, 1], [2, 3], [4]]),
        ([], 4, []),
    ],
)
def test_decreasing(name, lengths, sequence_length, bins):
    assert pack(name, lengths, sequence_length) == bins


def test_best_fit_takes_the_fullest_bin_and_first_fit_the_first():
    """After 7, 5 and 4 there is room for 3 in the first bin and for 1 in the second."""
    assert pack("best_fit", [7, 5, 4, 1], 10) == [[0], [1, 2, 3]]
    assert pack("first_fit", [7, 5, 4, 1], 10) == [[0, 3], [1, 2]]


@pytest.mark.parametrize(
    ("lengths", "sequence_length", "bins"),
    [
        ([3, 1, 2, 3], 4, [[0, 1], [2], [3]]),
        # TRL wrapped at 3 cuts [4,5,6,7] and has no bin that is not full; here an example waits for a bin with room.
        ([3, 3, 1], 3, [[0], [1], [2]]),
        ([1] * 7, 3, [[0, 1, 2], [3, 4, 5], [6]]),
        ([], 3, []),
    ],
)
def test_sequential(lengths, sequence_length, bins):
    assert pack("sequential", lengths, sequence_length) == bins


@pytest.mark.parametrize("name", ["best_fit", "first_fit", "sequential"])
@pytest.mark.parametrize(("length", "bins"), [(2, 84), (5, 200)])
def test_number_of_bins(name, length, bins):
    """torchtune: 1000 examples of one length in bins of 25."""
    found = pack(name, [length] * 1000, 25)
    assert len(found) == bins
    assert {len(members) for members in found[:-1]} == {25 // length}


@pytest.mark.parametrize("name", sorted(PACKINGS))
@pytest.mark.parametrize(
    ("lengths", "supervised"),
    [
        ([5, 2, 4, 1], [0] * 4),  # TRL's bfd at 4 throws the fifth token away
        ([4, 2], [3, 0]),
    ],
)
def test_examples_are_never_cut(name, lengths, supervised):
    """On purpose unlike TRL's bfd, bfd_split and wrapped, which cut [1..5] at 4: an example too big is an error."""
    with pytest.raises(ValueError, match=r"Example 0 has \d (supervised )?tokens, a sequence holds"):
        pack(name, lengths, 4, supervised, 2)


@pytest.mark.parametrize("name", DECREASING)
def test_closed_at_either_bound(name):
    """By tokens alone one bin would do; 2 targets a bin ask for two."""
    assert pack(name, [3, 3, 2, 2], 10, [1, 1, 1, 1], 10) == [[0, 1, 2, 3]]
    assert sorted(map(len, pack(name, [3, 3, 2, 2], 10, [1, 1, 1, 1], 2))) == [2, 2]
    assert sorted(map(len, pack(name, [4, 2, 2], 10, [0, 2, 2], 2))) == [1, 2]


@pytest.mark.parametrize(
    ("name", "bins"),
    [
        ("best_fit", [[0, 1], [2, 3], [4, 5]]),
        ("first_fit", [[0, 1], [2, 3], [4, 5]]),
        ("sequential", [[0, 1], [2, 3], [4, 5]]),
        ("none", [[0], [1], [2], [3], [4], [5]]),
    ],
)
def test_cap_on_segments(name, bins):
    assert pack(name, [3, 3, 2, 2, 1, 1], 12, segments=2) == bins


def test_unknown_packing_says_what_to_write():
    for value in ("True", "bestfit"):
        with pytest.raises(ValueError, match="packing must be one of best_fit, first_fit, sequential, none; got"):
            get_packing(value)


sizes = st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1)), min_size=1, max_size=120)


def arrays(drawn):
    lengths = np.array([length for length, _ in drawn], np.int64)
    return lengths, np.array([int(share * (length - 1)) for length, share in drawn], np.int64)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    drawn=sizes,
    extra=st.integers(0, 30),
    extra_targets=st.integers(0, 10),
    epoch=st.integers(0, 3),
    packing=st.sampled_from(sorted(PACKINGS)),
    max_examples_per_sequence=st.integers(0, 4),
)
def test_every_example_once_and_no_bin_over_a_bound(
    drawn, extra, extra_targets, epoch, packing, max_examples_per_sequence
):
    lengths, supervised = arrays(drawn)
    sequence_length, sequence_targets = int(lengths.max()) + extra, max(int(supervised.max()), 1) + extra_targets
    how = {
        "sequence_length": sequence_length,
        "sequence_targets": sequence_targets,
        "packing": packing,
        "max_examples_per_sequence": max_examples_per_sequence,
    }
    bins = pack_epoch(lengths, supervised, **how, seed=3, epoch=epoch)
    flat = np.concatenate(list(bins)).tolist()
    assert sorted(flat) == list(range(len(lengths)))
    tokens, targets = (np.array([quantity[members].sum() for members in bins]) for quantity in (lengths, supervised))
    counts = np.array([len(members) for members in bins])
    assert tokens.max() <= sequence_length
    assert targets.max() <= sequence_targets
    assert max_examples_per_sequence == 0 or counts.max() <= max_examples_per_sequence
    assert bins.sums(lengths).tolist() == tokens.tolist()
    again = pack_epoch(lengths, supervised, **how, seed=3, epoch=epoch)
    assert [members.tolist() for members in bins] == [members.tolist() for members in again]
    if packing == "none":
        assert set(counts) == {1}
    if packing == "sequential":
        assert flat == list(range(len(lengths)))
    if packing == "first_fit" or (packing == "best_fit" and not (targets.sum() > sequence_targets)):
        joined = (tokens[:, None] + tokens <= sequence_length) & (targets[:, None] + targets <= sequence_targets)
        if max_examples_per_sequence:
            joined &= counts[:, None] + counts <= max_examples_per_sequence
        assert not (joined & ~np.eye(len(bins), dtype=bool)).any(), "two bins could have been one"


@settings(max_examples=120, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 24), min_size=1, max_size=80), cap=st.integers(0, 5))
def test_best_fit_in_groups_is_best_fit_one_example_at_a_time(lengths, cap):
    """The definition: longest first, each into the bin with least room left that has room; among equals the one that
    may take fewest examples. Groups place many at once; how full the bins are must come out the same.
    """
    free, rows_left = [], []
    for length in sorted(lengths, reverse=True):
        fitting = [(f, r, i) for i, (f, r) in enumerate(zip(free, rows_left, strict=True)) if f >= length and r > 0]
        if fitting:
            chosen = min(fitting)[2]
        else:
            chosen = len(free)
            free.append(24)
            rows_left.append(cap or 10**6)
        free[chosen] -= length
        rows_left[chosen] -= 1
    found = pack("best_fit", lengths, 24, segments=cap)
    fill = sorted((sum(lengths[i] for i in members), len(members) if cap else 0) for members in found)
    assert fill == sorted((24 - f, cap - r if cap else 0) for f, r in zip(free, rows_left, strict=True))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(counts=st.lists(st.integers(0, 4), max_size=12), block=st.integers(1, 9), data=st.data())
def test_bins_are_a_list_of_arrays(counts, block, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bins_module, "BLOCK", block)
        _check_bins(counts, data)


def _check_bins(counts, data):
    examples = np.arange(sum(counts)) * 3
    bins, plain, start = Bins.of_sizes(examples, np.array(counts, np.int64)), [], 0
    for count in counts:
        plain.append(examples[start : start + count].tolist())
        start += count
    as_lists = lambda some: [members.tolist() for members in some]
    assert (len(bins), as_lists(bins)) == (len(plain), plain)
    first, last = (data.draw(st.integers(0, len(plain) + 1)) for _ in range(2))
    assert as_lists(bins[first:last]) == plain[first:last]
    if plain:
        at = data.draw(st.integers(-len(plain), len(plain) - 1))
        assert bins[at].tolist() == plain[at]
        chosen = data.draw(st.lists(st.integers(0, len(plain) - 1), max_size=8))
        assert as_lists(bins.take(np.array(chosen, np.int64))) == [plain[i] for i in chosen]
    with pytest.raises(IndexError, match=f"of {len(plain)}"):
        bins[len(plain)]
    assert as_lists(Bins.concatenated([bins, bins])) == plain + plain
    assert bins.sums(np.arange(len(examples) * 3)).tolist() == [sum(members) for members in plain]


@pytest.mark.parametrize("packing", ["best_fit", "first_fit", "none"])
def test_order_depends_on_seed_and_epoch(packing):
    lengths, supervised = np.full(50, 3, np.int64), np.ones(50, np.int64)
    orders = {
        tuple(
            pack_epoch(
                lengths, supervised, sequence_length=7, sequence_targets=7, seed=seed, epoch=epoch, packing=packing
            ).members.tolist()
        )
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 4


@pytest.mark.parametrize("packing", ["best_fit", "first_fit"])
def test_company_in_a_bin_varies(packing):
    """Not only the order of the bins: which examples share one differs from epoch to epoch."""
    lengths, supervised = np.full(50, 3, np.int64), np.ones(50, np.int64)
    company = {
        frozenset(
            frozenset(members.tolist())
            for members in pack_epoch(
                lengths, supervised, sequence_length=7, sequence_targets=7, seed=0, epoch=epoch, packing=packing
            )
        )
        for epoch in range(3)
    }
    assert len(company) == 3


@pytest.mark.parametrize(
    ("packing", "bins"),
    [
        ("best_fit", [[1, 0], [2, 3], [4]]),
        ("first_fit", [[1, 0], [2, 3], [4]]),
        ("sequential", [[0, 1], [2, 3], [4]]),
        ("none", [[4], [0], [2], [3], [1]]),
    ],
)
def test_order_is_pinned(packing, bins):
    """A change here changes the data order of every run: resuming runs of older versions breaks."""
    found = pack_epoch(
        np.array([2, 3, 4, 1, 2], np.int64),
        np.ones(5, np.int64),
        sequence_length=5,
        sequence_targets=5,
        seed=0,
        epoch=0,
        packing=packing,
    )
    assert [members.tolist() for members in found] == bins


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    drawn=sizes,
    extra=st.integers(0, 60),
    quantile=st.floats(0, 1),
    packing=st.sampled_from(sorted(PACKINGS)),
    sample=st.sampled_from([7, 10**6]),
)
def test_supervised_capacity_never_loses_a_token(drawn, extra, quantile, packing, sample):
    lengths, supervised = arrays(drawn)
    sequence_length = int(lengths.max()) + extra
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing_module, "_SAMPLE", sample)  # many examples: a sample speaks for all but the largest
        capacity = supervised_capacity(lengths, supervised, sequence_length, quantile, packing)
    assert supervised.max() <= capacity <= sequence_length
    assert capacity == sequence_length or (capacity % 8 == 0 and capacity < 0.9 * sequence_length)
    pack_epoch(
        lengths,
        supervised,
        sequence_length=sequence_length,
        sequence_targets=capacity,
        seed=0,
        epoch=0,
        packing=packing,
    )


@pytest.mark.parametrize(
    ("lengths", "supervised", "quantile", "capacity"),
    [
        ([50] * 8, [10] * 8, 1.0, 24),  # bins of two examples: 20 targets, up to the next multiple of 8
        ([100] * 4, [1, 1, 1, 30], 0.5, 32),  # the median is 1, but one example has 30
        ([100] * 4, [99] * 4, 1.0, 100),  # all supervised: every position has its slot
        ([100] * 4, [80] * 4, 1.0, 80),
        ([100] * 4, [85] * 4, 1.0, 88),
        ([100] * 4, [89] * 4, 1.0, 100),  # 96 would be over 0.9
    ],
)
def test_supervised_capacity(lengths, supervised, quantile, capacity):
    found = supervised_capacity(np.array(lengths, np.int64), np.array(supervised, np.int64), 100, quantile)
    assert found == capacity


@pytest.mark.parametrize("name", DECREASING)
def test_packing_report(name):
    examples = TokenizedExamples.from_examples(
        [(range(n), [0] * (n - k) + [1] * k) for n, k in [(3, 1), (3, 1), (2, 1), (2, 1)]], list("abcd")
    )
    report = packing_report(examples, sequence_length=10, sequence_targets=2, packing=name)
    assert (report.examples, report.bins) == (4, 2)
    assert report.efficiency == 10 / 20
    assert report.target_efficiency == 4 / 4
    assert report.efficiency_without_bound == 10 / 10


def test_report_of_several_sources():
    examples = TokenizedExamples.from_examples(
        [(range(n), [0.0] * (n - 1) + [1.0]) for n in (4, 4, 2)], list("abc"), sources=["math", "math", "code"]
    )
    report = packing_report(
        examples,
        sequence_length=8,
        sequence_targets=8,
        bins=Bins(np.array([0, 2, 2], np.int32), np.array([0, 1, 3])),
        is_epoch=False,
    )
    assert report.sources == {
        "math": {"examples": 2, "tokens": 8, "share_of_tokens": 0.5},
        "code": {"examples": 1, "tokens": 2, "share_of_tokens": 0.5},
    }
    assert (report.bins, report.efficiency, report.is_epoch) == (2, 8 / 16, False)


def lognormal_examples(count):
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.2, 1, count), 2, 2048).astype(np.int64)
    answers = np.clip(rng.lognormal(4, 0.8, count), 1, 300).astype(np.int64)
    return lengths, np.minimum(answers, lengths - 1)


@pytest.mark.parametrize(("packing", "efficiency"), [("best_fit", 0.995), ("first_fit", 0.99), ("sequential", 0.84)])
def test_a_hundred_thousand_examples_pack_well(packing, efficiency):
    lengths, supervised = lognormal_examples(100_000)
    bins = pack_epoch(
        lengths, supervised, sequence_length=2048, sequence_targets=1248, seed=0, epoch=0, packing=packing
    )
    assert lengths.sum() / (len(bins) * 2048) > efficiency


def test_first_fit_over_windows_is_first_fit_of_each():
    lengths, supervised = lognormal_examples(500)
    bounds = Bounds(2048, 1248)
    whole = packing_module.in_windows(first_fit_decreasing, lengths, supervised, bounds, window_examples=200)
    parts = [
        first_fit_decreasing(lengths[at], supervised[at], bounds).renamed(at)
        for at in np.split(np.arange(500, dtype=np.int32), [200, 400])
    ]
    assert [members.tolist() for members in whole] == [members.tolist() for members in itertools.chain(*parts)]
