"""Groups of answers as sequences: where each is, what it weighs, and that their room is known before."""

import dataclasses

import numpy as np
import pytest

from sft_jax.data.groups import NoRoomError, Sampled, Shape, fitting_targets, group_batch

SHAPE = Shape(group=4, longest=5, sequences=4, sequence_length=40, sequence_targets=20)


def answer(first, size, advantage=0.5):
    tokens = np.arange(first, first + size, dtype=np.int32)
    return Sampled(tokens, -tokens.astype(np.float32), advantage)


def group(first, sizes):
    return [answer(first + 10 * number, size, number + 1.0) for number, size in enumerate(sizes)]


def prompt(size, first=1):
    return np.arange(first, first + size, dtype=np.int32)


def test_whole_groups_and_parts_of_them():
    assert [len(pieces) for pieces in SHAPE.layout([10, 20])] == [1, 1]
    split = dataclasses.replace(SHAPE, sequence_targets=10).layout([10, 20])
    found = sorted((piece for pieces in split for piece in pieces), key=lambda piece: (piece[0], piece[1].start))
    assert found == [(0, range(2)), (0, range(2, 4)), (1, range(2)), (1, range(2, 4))]
    assert sorted(len(pieces) for pieces in dataclasses.replace(SHAPE, sequence_length=60).layout([5, 6])) == [1, 1]
    together = dataclasses.replace(SHAPE, sequence_length=60, sequence_targets=40)
    assert [len(pieces) for pieces in together.layout([5, 6])] == [2]
    apart = dataclasses.replace(together, packing="none")
    assert [len(pieces) for pieces in apart.layout([5, 6])] == [1, 1]


def test_pieces_are_of_nearly_equal_size():
    shape = dataclasses.replace(SHAPE, group=7, sequence_targets=20)
    assert sorted(len(answers) for ((_, answers),) in shape.layout([10])) == [3, 4]


def test_a_group_of_more_answers_than_branches_have_numbers():
    shape = Shape(group=300, longest=1, sequences=2, sequence_length=1000, sequence_targets=900)
    pieces = [piece for pieces in shape.layout([3]) for piece in pieces]
    assert [len(answers) for _, answers in pieces] == [150, 150]
    answers = [answer(number, 1) for number in range(300)]
    batch = group_batch([prompt(3)], [answers], shape, "tokens", [0, 1])
    assert batch["branches"].max() == 300
    assert np.array_equal(batch["targets"][batch["weights"] > 0], np.arange(300))


def test_no_room():
    with pytest.raises(NoRoomError, match="a prompt of 36 tokens leaves no room for an answer of 5 in 40"):
        SHAPE.layout([36])
    with pytest.raises(NoRoomError, match="5 sequences are needed"):
        SHAPE.layout([20] * 5)


def test_the_fewest_slots_for_targets():
    steps = [[10, 20], [20, 20]]
    assert fitting_targets(SHAPE, steps) == 10  # four parts of two answers in four sequences
    assert fitting_targets(dataclasses.replace(SHAPE, sequences=2), steps) == 20
    assert fitting_targets(dataclasses.replace(SHAPE, sequences=8), steps) == 5
    with pytest.raises(NoRoomError, match="2 sequences are needed"):
        fitting_targets(dataclasses.replace(SHAPE, sequences=1), steps)
    with pytest.raises(NoRoomError, match="a prompt of 39 tokens"):
        fitting_targets(SHAPE, [[39]])


def test_a_batch():
    groups = [group(100, [2, 3, 1, 2]), group(200, [1, 1, 5, 4])]
    batch = group_batch([prompt(4), prompt(3, 50)], groups, SHAPE, "tokens", range(4))
    assert {array.shape for array in batch.values()} == {(4, 40), (4, 20)}
    rows = {int(tokens[0]): number for number, tokens in enumerate(batch["tokens"]) if tokens[0]}
    first = rows[1]
    assert batch["tokens"][first, :12].tolist() == [1, 2, 3, 4, 100, 101, 110, 111, 112, 120, 130, 131]
    assert batch["positions"][first, :12].tolist() == [0, 1, 2, 3, 4, 5, 4, 5, 6, 4, 4, 5]
    assert batch["segment_ids"][first, :13].tolist() == [1, 1, 1, 1, 2, 2, 3, 3, 3, 4, 5, 5, 0]
    assert batch["parents"][first, :13].tolist() == [1] * 12 + [0]
    assert batch["target_slots"][first, :9].tolist() == [3, 4, 3, 6, 7, 3, 3, 10, 0]
    assert batch["targets"][first, :9].tolist() == [100, 101, 110, 111, 112, 120, 130, 131, 0]
    assert batch["branches"][first, :9].tolist() == [1, 1, 2, 2, 2, 3, 4, 4, 0]
    for row in batch["tokens"].any(axis=1).nonzero()[0]:
        used = batch["weights"][row] > 0
        assert np.array_equal(batch["drawn"][row][used], -batch["targets"][row][used].astype(np.float32))
        assert np.array_equal(batch["advantages"][row][used], batch["targets"][row][used] % 100 // 10 + 1)
        assert not batch["drawn"][row][~used].any()
        assert not batch["advantages"][row][~used].any()


def test_weights():
    groups = [group(100, [2, 3, 1, 2])]
    weights = {
        name: group_batch([prompt(4)], groups, SHAPE, name, range(4))["weights"].sum(axis=0)[:8]
        for name in ("tokens", "examples", "constant")
    }
    np.testing.assert_allclose(weights["tokens"], 1.0)
    np.testing.assert_allclose(weights["examples"], [1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3, 1, 1 / 2, 1 / 2])
    np.testing.assert_allclose(weights["constant"], 1 / 5)


@pytest.mark.parametrize("targets", [20, 10, 5])
def test_the_same_answers_wherever_they_are(targets):
    """Whole groups, or parts with the prompt before each; sequences of one process or of two."""
    groups = [group(100, [2, 3, 1, 2]), group(200, [1, 1, 5, 4])]
    shape = dataclasses.replace(SHAPE, sequences=8, sequence_targets=targets)
    prompts = [prompt(4), prompt(3, 50)]
    whole = group_batch(prompts, groups, shape, "tokens", range(8))
    found = sorted(whole["targets"][whole["weights"] > 0].tolist())
    assert found == sorted(token for answers in groups for one in answers for token in one.tokens.tolist())
    parts = [group_batch(prompts, groups, shape, "tokens", own) for own in ([0, 1, 4], [2, 3, 5, 6, 7])]
    for name, array in whole.items():
        assert np.array_equal(np.concatenate([part[name] for part in parts]), array[[0, 1, 4, 2, 3, 5, 6, 7]]), name


def test_answers_that_are_left_out():
    groups = [[None, answer(100, 2), None, answer(110, 1)], [None] * 4]
    batch = group_batch([prompt(4), prompt(3, 50)], groups, SHAPE, "examples", range(4))
    assert batch["targets"][batch["weights"] > 0].tolist() == [100, 101, 110]
    assert batch["branches"].max() == 2
    assert 50 not in batch["tokens"]
    nothing = group_batch([prompt(4)], [[None] * 4], SHAPE, "tokens", range(4))
    assert not nothing["weights"].any()
    assert nothing.keys() == batch.keys()
    assert {name: (array.shape, array.dtype) for name, array in nothing.items()} == {
        name: (array.shape, array.dtype) for name, array in batch.items()
    }
