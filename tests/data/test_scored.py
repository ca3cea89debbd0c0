"""Of answers that are scored the last token is what counts; margins go with their pairs."""

import numpy as np
import pytest

from sft_jax.data.batches import assemble, trained_tokens
from sft_jax.data.scored import with_scored_ends
from sft_jax.data.tokenized import Counts, Tokenized, TokenizedExamples
from sft_jax.data.tokenized.example_store import ExampleStoreWriter, open_examples

PAIR = ([5, 6, 7, 8, 9, 3, 4], [0, 0, 1, 1, 0, 1, 1], [0, 0, 1, 1, 1, 2, 2])  # the first answer goes on behind its end
SHORT = ([5, 8, 9], [0, 2, 2], [0, 1, 2])


def examples_of(*rows, margins=()):
    branches = [np.array(row[2], np.uint8) for row in rows]
    names = [f"t:{number}" for number in range(len(rows))]
    return TokenizedExamples.from_examples([row[:2] for row in rows], names, branches=branches, margins=margins)


def test_ends_are_the_targets():
    scored = with_scored_ends(examples_of(PAIR, SHORT))
    assert scored.weights.tolist() == [0, 0, 0, 0, 1, 0, 1, 0, 2, 2]
    assert scored.supervised.tolist() == [2, 2]
    assert scored.target_offsets.tolist() == [0, 2, 4]


def test_the_state_at_an_end_is_read():
    examples = with_scored_ends(examples_of(PAIR, SHORT, margins=(0.5, 0.0)))
    batch = assemble(examples, [np.array([0, 1])], sequence_length=12, sequence_targets=8)
    row = {name: array[0].tolist() for name, array in batch.items()}
    assert row["target_slots"][:4] == [4, 6, 8, 9]
    assert row["branches"] == [1, 2, 3, 4, 0, 0, 0, 0]
    assert row["margins"] == [0.5, 0.5, 0, 0, 0, 0, 0, 0]
    assert row["weights"][:4] == [1, 1, 2, 2]
    assert trained_tokens(batch)[0].tolist() == [0, 0, 0, 0, 1, 0, 1, 0, 2, 2, 0, 0]
    without = assemble(with_scored_ends(examples_of(PAIR)), [np.array([0])], sequence_length=12, sequence_targets=8)
    assert not without["margins"].any()
    assert "margins" not in assemble(examples_of(PAIR, margins=(1.0,)), [], sequence_length=12, sequence_targets=8)


@pytest.mark.parametrize("parts", [[(PAIR, 0.0), (SHORT, 0.5)], [(PAIR, 1.5), (SHORT, 0.0)]])
def test_margins_come_back_from_disk(tmp_path, parts):
    with ExampleStoreWriter(tmp_path) as writer:
        for row, margin in parts:
            examples = examples_of(row, margins=(margin,))
            writer.append(Tokenized(examples, [], Counts(1, 1, 0, 1)))
        writer.finish({}, {})
    found = open_examples(tmp_path).examples
    whole = examples_of(*(row for row, _ in parts), margins=[margin for _, margin in parts])
    assert found.margins.tolist() == whole.margins.tolist() == [margin for _, margin in parts]
    again = TokenizedExamples.from_examples(
        [found.example(number) for number in range(2)],
        [*found.ids],
        branches=[found.branches_of(number) for number in range(2)],
        margins=found.margins,
    )
    assert found.fingerprint() == again.fingerprint()


def test_the_fingerprint_knows_margins():
    prints = {examples_of(PAIR, SHORT, margins=each).fingerprint() for each in ((), (0.0, 0.5), (0.5, 0.0), (0.0, 1.0))}
    assert len(prints) == 4
    assert examples_of(PAIR, margins=(0.0,)).fingerprint() == examples_of(PAIR).fingerprint()
