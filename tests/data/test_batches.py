"""Batches against the table in the docstring, the naive definition, and the same stream cut in any way."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_jax.data.batches import assemble, held_out_batches, held_out_bins, train_batches, trained_tokens
from sft_jax.data.packing import PACKINGS, get_packing
from sft_jax.data.packing.bins import Bounds
from sft_jax.data.plan import PackPlan
from sft_jax.data.tokenized import TokenizedExamples

BATCH_KEYS = ["tokens", "positions", "segment_ids", "target_slots", "targets", "weights"]


def stack(batches):
    batches = list(batches)
    return {name: np.concatenate([batch[name] for batch in batches]) for name in BATCH_KEYS}


def assert_same(one, other):
    for name in BATCH_KEYS:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


TWO_ROWS = TokenizedExamples.from_examples([([5, 6, 7], [0, 0, 1]), ([8, 9], [0, 1])], ["a", "b"])


@pytest.mark.parametrize(
    ("sequence_targets", "expected"),
    [
        (4, {"target_slots": [1, 3, 0, 0], "targets": [7, 9, 0, 0], "weights": [1, 1, 0, 0]}),
        (
            6,
            {
                "target_slots": [0, 1, 2, 3, 4, 5],
                "targets": [0, 7, 0, 9, 0, 0],
                "weights": [0, 1, 0, 1, 0, 0],
            },
        ),
    ],
)
def test_docstring_table(sequence_targets, expected):
    batch = assemble(TWO_ROWS, [np.array([0, 1])], sequence_length=6, sequence_targets=sequence_targets)
    expected |= {"tokens": [5, 6, 7, 8, 9, 0], "positions": [0, 1, 2, 0, 1, 2], "segment_ids": [1, 1, 1, 2, 2, 0]}
    assert {name: array[0].tolist() for name, array in batch.items()} == expected
    assert [str(batch[name].dtype) for name in BATCH_KEYS] == ["int32"] * 5 + ["float32"]


def test_padding_counts_on():
    """torchtune: positions in the padding go on counting; ours pads targets with weight 0 in place of -100."""
    examples = TokenizedExamples.from_examples([(range(9), [0] * 9), ([5], [0])], ["a", "b"])
    batch = assemble(examples, [np.array([0, 1]), np.array([], np.int64)], sequence_length=12, sequence_targets=2)
    assert batch["positions"].tolist() == [[*range(9), 0, 1, 2], list(range(12))]
    assert batch["segment_ids"].tolist() == [[1] * 9 + [2, 0, 0], [0] * 12]
    assert not batch["weights"].any()


TRL = [  # (examples, sequence_length, sequences, lengths of the examples in them)
    ([[1, 2, 3], [4, 5, 6, 7], [8]], 4, [[4, 5, 6, 7], [1, 2, 3, 8]], [[4], [3, 1]]),
    # bfd cuts [1..5] at 4 and throws 5 away; here too_long=truncate_right did that before
    ([[1, 2, 3, 4], [6, 7], [8, 9, 10, 11], [12]], 4, [[1, 2, 3, 4], [8, 9, 10, 11], [6, 7, 12]], [[4], [4], [2, 1]]),
    ([[1, 2, 3, 4, 5], [6], [7, 8, 9, 10], [11, 12, 13]], 5, [[1, 2, 3, 4, 5], [7, 8, 9, 10, 6], [11, 12, 13]],
     [[5], [4, 1], [3]]),
    ([[1, 2], [3, 4, 5], [6]], 4, [[3, 4, 5, 6], [1, 2]], [[3, 1], [2]]),  # without its empty examples: here an error
]  # fmt: skip


@pytest.mark.parametrize("packing", ["best_fit", "first_fit"])
@pytest.mark.parametrize(("tokens", "sequence_length", "packed", "lengths"), TRL)
def test_trls_tables(tokens, sequence_length, packed, lengths, packing):
    """What stands in the examples of a batch, in the order in which TRL's bfd gives them."""
    examples = TokenizedExamples.from_examples(
        [(example, [0] * len(example)) for example in tokens], [str(example) for example in tokens]
    )
    bins = get_packing(packing)(examples.lengths, examples.supervised, Bounds(sequence_length, sequence_length))
    batch = assemble(examples, list(bins), sequence_length=sequence_length, sequence_targets=sequence_length)
    used = batch["segment_ids"] > 0
    assert [line[mask].tolist() for line, mask in zip(batch["tokens"], used, strict=True)] == packed
    assert [np.bincount(line)[1:].tolist() for line in batch["segment_ids"]] == lengths


@pytest.mark.parametrize("length", [2, 5])
def test_examples_of_one_length(length):
    """torchtune: 1000 of them in examples of 25; positions begin anew with each, and count on in what is left."""
    examples = TokenizedExamples.from_examples(
        [([i] * length, [0] * length) for i in range(1000)], [str(i) for i in range(1000)]
    )
    (line, *_, last) = held_out_bins(examples, 25, 25, "sequential")
    batch = assemble(examples, [line, last], sequence_length=25, sequence_targets=1)
    whole, left = divmod(25, length)
    assert batch["tokens"][0].tolist() == [i for i in range(whole) for _ in range(length)] + [0] * left
    assert batch["positions"][0].tolist() == [*list(range(length)) * whole, *range(length, length + left)]
    assert batch["segment_ids"][0].tolist() == [i + 1 for i in range(whole) for _ in range(length)] + [0] * left
    assert last.tolist()[-1] == 999


def test_normalize_by_examples():
    examples = TokenizedExamples.from_examples(
        [(range(5), [0, 1, 1, 1, 1]), (range(3), [0, 0, 3]), ([1], [0])], list("abc")
    )
    batch = assemble(examples, [np.array([0, 1, 2])], sequence_length=9, sequence_targets=8, normalize="examples")
    assert batch["weights"].tolist() == [[0.25, 0.25, 0.25, 0.25, 1, 0, 0, 0]]
    with pytest.raises(ValueError, match="normalize must be one of tokens, examples, got 'rows'"):
        assemble(examples, [np.array([0])], sequence_length=9, sequence_targets=8, normalize="rows")


def test_bins_that_do_not_fit():
    for sequence_length, sequence_targets in ((4, 4), (6, 1)):
        with pytest.raises(ValueError, match=r"Examples \['a', 'b'\] do not fit"):
            assemble(TWO_ROWS, [np.array([0, 1])], sequence_length=sequence_length, sequence_targets=sequence_targets)


WEIGHTS = st.lists(st.sampled_from([0.0, 0.0, 0.5, 1.0]), min_size=1, max_size=16)
ROWS = st.lists(WEIGHTS, min_size=1, max_size=30)


def make_examples(drawn):
    """Tokens are all different, so that a misplaced one shows."""
    starts = np.cumsum([1, *map(len, drawn)])
    pairs = [(np.arange(start, start + len(w)), w) for start, w in zip(starts, drawn, strict=False)]
    return TokenizedExamples.from_examples(pairs, [f"r{i}" for i in range(len(drawn))])


@settings(max_examples=120, deadline=None, derandomize=True)
@given(drawn=ROWS, every_position=st.booleans())
def test_naive_definition(drawn, every_position):
    """Slots of a bin: for each weighted token of its examples, but the first, (the place before it, it, weight)."""
    examples = make_examples(drawn)
    sequence_targets = 20 if every_position else max(int(examples.supervised.max()), 1)
    bins = held_out_bins(examples, 20, sequence_targets)
    batch = assemble(examples, bins, sequence_length=20, sequence_targets=sequence_targets)
    for line, members in enumerate(bins):
        expected, begin = [], 0
        for segment, member in enumerate(members, 1):
            tokens, weights = examples.example(member)
            inside = slice(begin, begin + len(tokens))
            assert batch["tokens"][line, inside].tolist() == tokens.tolist()
            assert batch["positions"][line, inside].tolist() == list(range(len(tokens)))
            assert set(batch["segment_ids"][line, inside].tolist()) == {segment}
            expected += [(begin + i - 1, tokens[i], weights[i]) for i in range(1, len(tokens)) if weights[i] > 0]
            begin += len(tokens)
        used = np.flatnonzero(batch["weights"][line])
        found = zip(*(batch[name][line, used].tolist() for name in ("target_slots", "targets", "weights")), strict=True)
        assert list(found) == expected
        assert not batch["targets"][line, batch["weights"][line] == 0].any()
        slots = batch["target_slots"][line]
        assert slots.tolist() == list(range(20)) if every_position else used.tolist() == list(range(len(expected)))
        segments = batch["segment_ids"][line]
        assert all(segments[s] == segments[s + 1] > 0 for s, _, _ in expected)  # no target across a boundary
        assert (segments[begin:] == 0).all()
    assert batch["weights"].sum() == examples.weights.sum()
    assert trained_tokens(batch).sum() == examples.weights.sum()


def test_packed_positions_step_by_one_or_restart():
    """torchtitan's invariant, on 100 packed examples, not vacuous."""
    rng = np.random.default_rng(0)
    examples = make_examples([[0.0] + [1.0] * n for n in rng.integers(1, 15, 400)])
    plan = PackPlan(examples, sequence_length=32, sequence_targets=32, sequences_per_batch=4, seed=0)
    batch = stack(train_batches(examples, plan, 0, 25))
    steps, segments = np.diff(batch["positions"]), batch["segment_ids"]
    restarts = batch["positions"][:, 1:] == 0
    assert ((steps == 1) | restarts).all()
    assert restarts.sum() > 100
    np.testing.assert_array_equal(restarts, (np.diff(segments) == 1) & (segments[:, 1:] > 0))


@pytest.mark.parametrize("packing", sorted(PACKINGS))
def test_no_target_crosses_a_document(packing):
    """torchtitan's, over 100 packed batches: the end of a document predicts nothing, its beginning is no target."""
    begin, end = 1, 2
    rng = np.random.default_rng(0)
    pairs = [([begin, *range(3, 3 + n), end], [0.0] + [1.0] * (n + 1)) for n in rng.integers(1, 13, 3000)]
    examples = TokenizedExamples.from_examples(pairs, [str(i) for i in range(3000)])
    plan = PackPlan(examples, sequence_length=32, sequence_targets=32, sequences_per_batch=4, seed=0, packing=packing)
    interior = 0
    for batch in train_batches(examples, plan, 0, 100):
        tokens, predicted = batch["tokens"], batch["weights"] > 0
        assert not predicted[tokens == end].any()
        assert not (batch["targets"][predicted] == begin).any()
        lines, starts = np.nonzero(tokens == begin)
        inside = starts > 0
        assert (batch["targets"][lines[inside], starts[inside] - 2] == end).all()
        assert not predicted[lines[inside], starts[inside] - 1].any()
        assert np.count_nonzero(predicted) == np.count_nonzero(batch["segment_ids"]) - len(starts)
        interior += np.count_nonzero(inside)
    assert interior == 0 if packing == "none" else interior > 100


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("sequences_per_batch", [1, 2])
@pytest.mark.parametrize("sequence_length", [512, 4096])
@pytest.mark.parametrize("packing", ["best_fit", "sequential"])
def test_an_epoch_has_every_example_once_in_sequences_that_hold_them(
    threads, sequences_per_batch, sequence_length, packing
):
    """axolotl's sampler: batch sizes, workers, lengths, sequential or not."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4.5, 1, 200), 1, 512).astype(int)
    examples = TokenizedExamples.from_examples(
        [(np.full(n, i), np.ones(n)) for i, n in enumerate(lengths)], [str(i) for i in range(200)]
    )
    plan = PackPlan(
        examples,
        sequence_length=sequence_length,
        sequence_targets=sequence_length,
        sequences_per_batch=sequences_per_batch,
        seed=0,
        packing=packing,
    )
    bins = len(plan.first_block)
    batches = train_batches(examples, plan, 0, -(-bins // sequences_per_batch), threads=threads)
    epoch = {name: array[:bins] for name, array in stack(batches).items()}
    seen = []
    for tokens, segments in zip(epoch["tokens"], epoch["segment_ids"], strict=True):
        for segment in range(1, segments.max() + 1):
            (example,) = set(tokens[segments == segment].tolist())
            assert np.count_nonzero(segments == segment) == lengths[example]
            seen.append(example)
    assert sorted(seen) == list(range(200))


@pytest.fixture(scope="module")
def planned():
    rng = np.random.default_rng(1)
    examples = make_examples([[0.0, *rng.choice([0.0, 1.0], n).tolist()] for n in rng.integers(1, 15, 70)])
    return examples, PackPlan(examples, sequence_length=24, sequence_targets=12, sequences_per_batch=4, seed=0)


def test_resume_from_any_step_is_the_uninterrupted_stream(planned):
    """torchtitan resumes over an epoch's end; here from every step of more than two epochs."""
    examples, plan = planned
    count = plan.steps_for("epochs", 2) + 2
    whole = list(itertools.islice(train_batches(examples, plan), count))
    for start in range(count):
        for batch, expected in zip(train_batches(examples, plan, start, count), whole[start:], strict=True):
            assert_same(batch, expected)


@pytest.mark.parametrize("process", [0, 1])
def test_each_of_two_processes_resumes_over_the_end_of_an_epoch(process):
    """torchtitan's: 12 batches of 10 examples, then 4 more, which a new loader gives too."""
    examples = make_examples([[0.0] + [1.0] * n for n in range(3, 13)])
    how = {"sequence_length": 16, "sequence_targets": 16, "sequences_per_batch": 2, "seed": 0}
    whole = list(train_batches(examples, PackPlan(examples, **how), 0, 16, own=[process]))
    fresh = PackPlan(examples, **how)
    assert 1 < fresh.epochs_at(12) < fresh.epochs_at(16)
    for batch, expected in zip(train_batches(examples, fresh, 12, 16, own=[process]), whole[12:], strict=True):
        assert_same(batch, expected)


@pytest.mark.parametrize("owners", [[[0, 1], [2, 3]], [[0], [1], [2], [3]], [[0, 2], [1, 3]], [[1, 2], [1, 2]]])
def test_processes_read_their_sequences_of_the_same_global_batches(planned, owners):
    """In an example or not, and two processes the same ones where they hold the same."""
    examples, plan = planned
    streams = [train_batches(examples, plan, 3, 17, own=own) for own in owners]
    for whole, *parts in zip(train_batches(examples, plan, 3, 17), *streams, strict=True):
        for own, part in zip(owners, parts, strict=True):
            assert_same(part, {name: whole[name][own] for name in BATCH_KEYS})


@pytest.mark.parametrize("threads", [0, 1, 8])
def test_threads_change_nothing(planned, threads):
    examples, plan = planned
    for batch, expected in zip(
        train_batches(examples, plan, 0, 12, threads=threads), train_batches(examples, plan, 0, 12), strict=True
    ):
        assert_same(batch, expected)


def test_the_loader_is_endless_and_reads_no_further_ahead_than_it_is_told(planned, monkeypatch):
    examples, plan = planned
    begun, bins = [], plan.batch_bins
    monkeypatch.setattr(plan, "batch_bins", lambda step: begun.append(step) or bins(step))
    stream = train_batches(examples, plan, 10**3, batches_ahead=3)
    assert next(stream)["tokens"].shape == (4, 24)
    stream.close()
    assert sorted(begun) == [10**3 + ahead for ahead in range(4)]


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_of_assembling_reaches_the_reader_at_its_batch(planned, monkeypatch, threads):
    examples, plan = planned
    bins = plan.batch_bins

    def broken_from_2_on(step):
        if step >= 2:
            raise ValueError(f"step {step} is broken")
        return bins(step)

    monkeypatch.setattr(plan, "batch_bins", broken_from_2_on)
    stream = train_batches(examples, plan, threads=threads)
    next(stream), next(stream)
    with pytest.raises(ValueError, match="step 2 is broken"):
        next(stream)


def test_ids_of_a_step_are_the_examples_in_its_batch(planned):
    examples, plan = planned
    for step, batch in enumerate(itertools.islice(train_batches(examples, plan), 20)):
        tokens = np.concatenate([examples.example(examples.ids.index(name))[0] for name in plan.example_ids(step)])
        np.testing.assert_array_equal(batch["tokens"][batch["segment_ids"] > 0], tokens)
        assert plan.counts(step)["supervised_tokens"] == np.count_nonzero(batch["weights"])
        assert plan.counts(step)["tokens"] == np.count_nonzero(batch["segment_ids"])


@pytest.mark.parametrize("packing", sorted(PACKINGS))
@pytest.mark.parametrize("process_count", [1, 2])
def test_held_out_once_whatever_the_batch_size(planned, packing, process_count):
    examples, _ = planned
    bins = held_out_bins(examples, 24, 24, packing)
    assert sorted(np.concatenate(bins).tolist()) == list(range(len(examples)))
    whole = assemble(examples, bins, sequence_length=24, sequence_targets=24)
    for batch_sequences in (2, 4, 8, len(bins) + len(bins) % 2):
        streams = [
            held_out_batches(examples, 24, 24, batch_sequences, packing=packing, own=own.tolist())
            for own in np.split(np.arange(batch_sequences), process_count)
        ]
        batches = [stack(parts) for parts in zip(*streams, strict=True)]
        assert {batch["tokens"].shape for batch in batches} == {(batch_sequences, 24)}
        together = stack(batches)
        assert_same({name: array[: len(bins)] for name, array in together.items()}, whole)
        assert not together["weights"][len(bins) :].any()
        assert not together["segment_ids"][len(bins) :].any()
