"""The endless stream of bins: every example once an epoch, epochs that roll over, positions and durations."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_jax.data.packing import PACKINGS
from sft_jax.data.plan import PackPlan, order, stream
from sft_jax.data.tokenized import TokenizedExamples


@pytest.fixture(autouse=True, scope="module")
def few_bins_counted_together():
    """So that plans of a test have many of what is remembered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "_COUNTED_BINS", 4)
        yield


def make_examples(lengths):
    return TokenizedExamples.from_examples(
        [(range(1, n + 1), [i % 3 == 1 for i in range(n)]) for n in lengths], [f"r{i}" for i in range(len(lengths))]
    )


def make_plan(lengths, sequences_per_batch=4, seed=0, **options):
    options = {"sequence_length": 24, "sequence_targets": 8, **options}
    return PackPlan(make_examples(lengths), sequences_per_batch=sequences_per_batch, seed=seed, **options)


LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=40)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(lengths=LENGTHS, sequences_per_batch=st.integers(1, 7), packing=st.sampled_from(sorted(PACKINGS)))
def test_every_example_exactly_once_an_epoch_and_batches_roll_over(lengths, sequences_per_batch, packing):
    plan = make_plan(lengths, sequences_per_batch, packing=packing)
    steps = plan.steps_for("epochs", 3) + 1
    stream = [members for step in range(steps) for members in plan.batch_bins(step)]
    assert len(stream) == steps * sequences_per_batch  # every batch is full: the last of an epoch rolls over
    flat = np.concatenate(stream).tolist()
    for epoch in range(3):
        begin = epoch * len(lengths)
        assert sorted(flat[begin : begin + len(lengths)]) == list(range(len(lengths)))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    lengths=LENGTHS, sequences_per_batch=st.integers(1, 5), steps=st.lists(st.integers(0, 30), min_size=1, max_size=6)
)
def test_any_position_in_any_order(lengths, sequences_per_batch, steps):
    """A plan that jumps (a resumed run) says what a plan that walked said; counters follow from the position."""
    walking, jumping = make_plan(lengths, sequences_per_batch), make_plan(lengths, sequences_per_batch)
    sizes = np.array(lengths)
    supervised = make_examples(lengths).supervised
    seen = [walking.batch_bins(step) for step in range(max(steps) + 1)]
    counts = [walking.counts(step) for step in range(max(steps) + 1)]
    for step in steps:
        assert [b.tolist() for b in jumping.batch_bins(step)] == [b.tolist() for b in seen[step]]
        flat = np.concatenate(seen[step])
        assert jumping.example_ids(step) == [f"r{example}" for example in flat]
        counted = {"examples": len(flat), "tokens": sizes[flat].sum(), "supervised_tokens": supervised[flat].sum()}
        assert jumping.counts(step) == counted
        before = {name: sum(count[name] for count in counts[:step]) for name in counted}
        assert jumping.cumulative_counts(step) == before


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    lengths=LENGTHS,
    sequences_per_batch=st.integers(1, 5),
    unit=st.sampled_from(["examples", "tokens"]),
    amount=st.integers(0, 900),
)
def test_steps_for_is_the_smallest_that_reaches(lengths, sequences_per_batch, unit, amount):
    plan = make_plan(lengths, sequences_per_batch)
    steps = plan.steps_for(unit, amount)
    assert plan.cumulative_counts(steps)[unit] >= amount
    assert steps == 0 or plan.cumulative_counts(steps - 1)[unit] < amount


def test_durations_by_hand():
    """Ten examples of 12 tokens, two in a bin: 5 bins an epoch, 2 a batch."""
    plan = make_plan([12] * 10, sequences_per_batch=2)
    assert plan.steps_per_epoch == 2.5
    table = [
        ("steps", 7, 7),
        ("epochs", 1, 3),  # 5 bins are 2.5 batches
        ("epochs", 2, 5),
        ("epochs", 0.5, 2),
        ("examples", 4, 1),
        ("examples", 5, 2),
        ("examples", 0, 0),
        ("tokens", 240, 5),
        ("tokens", 241, 6),
    ]
    assert [plan.steps_for(unit, amount) for unit, amount, _ in table] == [steps for _, _, steps in table]
    assert [plan.epochs_at(step) for step in (0, 1, 5)] == [0, 0.4, 2]
    assert plan.cumulative_counts(5) == {"examples": 20, "tokens": 240, "supervised_tokens": 80}


def test_epochs_differ_and_seeds_differ():
    plan, other = make_plan([12] * 30, 15), make_plan([12] * 30, 15, seed=1)
    orders = {tuple(plan.example_ids(0)), tuple(plan.example_ids(1)), tuple(other.example_ids(0))}
    assert len(orders) == 3


def test_counters_do_not_wait_for_an_epoch_that_is_packed_ahead(monkeypatch):
    """Packing a million examples takes a while; the loader does it ahead, and the loop goes on."""
    plan = make_plan([5] * 40)
    packing, go_on, pack = threading.Event(), threading.Event(), order.pack_epoch

    def slowly(*arguments, **options):
        packing.set()
        assert go_on.wait(60)
        return pack(*arguments, **options)

    monkeypatch.setattr(order, "pack_epoch", slowly)
    ahead = threading.Thread(target=plan.bins, args=(10, 30), daemon=True)
    ahead.start()
    assert packing.wait(60)
    asked = threading.Thread(target=plan.counts, args=(0,), daemon=True)
    asked.start()
    asked.join(60)
    waited = asked.is_alive()
    go_on.set()
    ahead.join(60)
    assert not waited
    assert not ahead.is_alive()


def test_forgotten_epochs_come_back_the_same():
    plan = make_plan([5, 7, 9, 11, 3], 1)
    first = plan.example_ids(0)
    plan.example_ids(100)
    assert plan.example_ids(0) == first


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: make_plan([]), "no examples"),
        (lambda: make_plan([3], 0), "sequences_per_batch must be at least 1"),
        (lambda: make_plan([25]), "Example 0 has 25 tokens"),
        (lambda: make_plan([3]).steps_for("minutes", 3), "Unknown unit of duration 'minutes'"),
        (lambda: make_plan([3]).steps_for("steps", -1), "not negative"),
        (lambda: make_plan([3]).batch_bins(-1), "cannot be negative"),
    ],
)
def test_errors(call, words):
    with pytest.raises(ValueError, match=words):
        call()
