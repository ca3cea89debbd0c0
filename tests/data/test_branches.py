"""Examples with branches in batches and on disk: what a token is told, and what predicts it."""

import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.data.batches import assemble, empty_batch, trained_tokens
from sft_jax.data.tokenized import Counts, Tokenized, TokenizedExamples
from sft_jax.data.tokenized.example_store import ExampleStoreWriter, open_examples
from sft_jax.models.visibility import Visibility

PLAIN = ([1, 2, 3], [0, 1, 1], None)
BRANCHED = ([5, 6, 7, 8, 9, 3, 4], [0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 2, 2])
LATE = ([5, 8, 9, 3, 4], [0, 0, 2, 2, 2], [0, 1, 1, 2, 2])  # the first token of a branch is not trained


def examples_of(*rows):
    branches = [None if branch is None else np.array(branch, np.uint8) for _, _, branch in rows]
    names = [f"t:{number}" for number in range(len(rows))]
    return TokenizedExamples.from_examples([row[:2] for row in rows], names, branches=branches)


def row_of(*rows, length=8, targets=4):
    batch = assemble(examples_of(*rows), [np.arange(len(rows))], sequence_length=length, sequence_targets=targets)
    return {name: array[0].tolist() for name, array in batch.items()}, batch


def test_positions_segments_parents_and_slots():
    row, _ = row_of(BRANCHED)
    assert row["positions"][:7] == [0, 1, 2, 3, 4, 3, 4]
    assert row["segment_ids"] == [1, 1, 1, 2, 2, 3, 3, 0]
    assert row["parents"] == [1, 1, 1, 1, 1, 1, 1, 0]
    assert row["target_slots"] == [2, 3, 2, 5]
    assert row["targets"] == [8, 9, 3, 4]
    assert row["branches"] == [1, 1, 2, 2]


def test_who_sees_whom():
    _, batch = row_of(BRANCHED, length=7)
    positions, segments, parents = (jnp.asarray(batch[name]) for name in ("positions", "segment_ids", "parents"))
    seen = Visibility(positions, positions, segments, segments, parents).mask()
    assert [np.flatnonzero(query).tolist() for query in np.asarray(seen)[0]] == [
        [0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 5], [0, 1, 2, 5, 6],
    ]  # fmt: skip


def test_several_in_a_sequence():
    row, _ = row_of(BRANCHED, PLAIN, LATE, length=16, targets=12)
    assert row["segment_ids"] == [1, 1, 1, 2, 2, 3, 3, 4, 4, 4, 5, 6, 6, 7, 7, 0]
    assert row["parents"] == [1, 1, 1, 1, 1, 1, 1, 4, 4, 4, 5, 5, 5, 5, 5, 0]
    assert row["positions"][7:15] == [0, 1, 2, 0, 1, 2, 1, 2]
    assert row["branches"] == [1, 1, 2, 2, 0, 0, 3, 4, 4, 0, 0, 0]
    assert row["target_slots"][:9] == [2, 3, 2, 5, 7, 8, 11, 10, 13]
    assert row["weights"][:9] == [1, 1, 1, 1, 1, 1, 2, 2, 2]


def test_trained_tokens_are_found_again():
    _, batch = row_of(BRANCHED, PLAIN, LATE, length=16, targets=12)
    expected = [weight for _, weights, _ in (BRANCHED, PLAIN, LATE) for weight in weights]
    assert trained_tokens(batch)[0].tolist() == [*expected, 0]


def test_a_slot_for_each_position_cannot_say_it():
    with pytest.raises(ValueError, match="slot i is position i"):
        row_of(BRANCHED, length=8, targets=8)


def test_padding_has_no_branches():
    batch = empty_batch(2, 8, 4, with_branches=True)
    assert not batch["parents"].any()
    assert not batch["branches"].any()


def test_batches_without_branches_have_no_such_arrays():
    assert row_of(PLAIN)[0].keys() == {
        *("tokens", "positions", "segment_ids", "target_slots", "targets", "weights")
    }  # fmt: skip


def test_lengths():
    examples = examples_of(BRANCHED, PLAIN, LATE)
    assert examples.lengths.tolist() == [7, 3, 5]
    assert examples.text_lengths.tolist() == [[0, 3, 0], [5, 0, 3], [5, 0, 3]]
    assert examples_of(PLAIN).text_lengths.tolist() == [[3]]
    assert examples.target_offsets.tolist() == [0, 4, 6, 9]
    assert examples.supervised.tolist() == [4, 2, 3]
    assert examples.branch_counts.tolist() == [2, 0, 2]


def test_the_fingerprint_knows_branches():
    tokens, weights, branches = BRANCHED
    prints = {
        examples_of((tokens, weights, each)).fingerprint() for each in (branches, [0, 0, 1, 1, 1, 2, 2], None, [0] * 7)
    }
    assert len(prints) == 3  # an example whose branches are all 0 has none


@pytest.mark.parametrize("parts", [[[PLAIN], [BRANCHED]], [[BRANCHED], [PLAIN]], [[PLAIN, BRANCHED, LATE]]])
def test_they_come_back_from_disk(tmp_path, parts):
    with ExampleStoreWriter(tmp_path) as writer:
        for part in parts:
            examples = examples_of(*part)
            writer.append(Tokenized(examples, [], Counts(len(part), len(part), 0, len(part))))
        writer.finish({}, {})
    found, expected = open_examples(tmp_path).examples, examples_of(*(row for part in parts for row in part))
    assert found.branches.tolist() == expected.branches.tolist()
    assert (
        found.fingerprint()
        == TokenizedExamples.from_examples(
            [found.example(number) for number in range(len(found))],
            list(found.ids),
            branches=[found.branches_of(number) for number in range(len(found))],
        ).fingerprint()
    )


def test_a_store_without_branches_has_no_such_file(tmp_path):
    with ExampleStoreWriter(tmp_path) as writer:
        writer.append(Tokenized(examples_of(PLAIN), [], Counts(1, 1, 0, 1)))
        writer.finish({}, {})
    assert not (tmp_path / "branches").exists()
    assert open_examples(tmp_path).examples.branches is None
