"""Answers to other prompts: whose they are, and that they hang on no batch."""

import numpy as np
import pytest

from sft_jax.data.mismatched import NoOtherPromptError, with_mismatched
from sft_jax.data.tokenized import TokenizedExamples


def examples_of(*rows):
    """Rows of (tokens, weights, branches)."""
    branches = [np.array(row[2], np.uint8) for row in rows]
    names = [f"t:{number}" for number in range(len(rows))]
    return TokenizedExamples.from_examples([row[:2] for row in rows], names, branches=branches)


WANTED = ([5, 6, 7, 8], [0, 0, 1, 1], [0, 0, 1, 1])
UNWANTED = ([9, 3], [0, 2], [0, 2])
PAIR = ([5, 4, 7, 8, 1, 2, 3], [0, 0, 0, 1, 1, 1, 0], [0, 0, 1, 1, 2, 2, 2])


def rows_of(examples):
    found = [(*examples.example(number), examples.branches_of(number)) for number in range(len(examples))]
    return [tuple(array.tolist() for array in row) for row in found]


def test_answers_with_labels():
    found, dropped = with_mismatched(examples_of(WANTED, UNWANTED), 16)
    assert not dropped
    assert rows_of(found) == [
        ([5, 6, 7, 8, 3], [0, 0, 1, 1, 1], [0, 0, 1, 1, 3]),
        ([9, 3, 7, 8], [0, 2, 2, 2], [0, 2, 4, 4]),
    ]


def test_pairs():
    """The chosen answer takes the place of the chosen one, from its first target to its last."""
    other = ([9, 3, 4, 6], [0, 1, 1, 1], [0, 1, 2, 2])
    found, _ = with_mismatched(examples_of(PAIR, other), 32)
    assert rows_of(found) == [
        ([5, 4, 7, 8, 1, 2, 3, 7, 3, 4, 6], [0, 0, 0, 1, 1, 1, 0, 0, 1, 1, 1], [0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4]),
        ([9, 3, 4, 6, 8, 1, 2], [0, 1, 1, 1, 1, 1, 1], [0, 1, 2, 2, 3, 4, 4]),
    ]


def test_a_pair_beside_an_answer_with_a_label():
    found, _ = with_mismatched(examples_of(UNWANTED, PAIR), 32)
    assert rows_of(found)[0] == ([9, 3, 1, 2], [0, 2, 2, 2], [0, 2, 4, 4])
    assert rows_of(found)[1][0][7:] == [7, 3, 3]
    assert rows_of(found)[1][2][7:] == [3, 3, 4]


def test_the_prompt_is_another_one():
    """As where a data set has both answers to a prompt in rows of their own, one behind the other."""
    same = ([5, 6, 1], [0, 0, 1], [0, 0, 2])
    found, _ = with_mismatched(examples_of(WANTED, same, UNWANTED), 16)
    assert [row[0][-1] for row in rows_of(found)[:2]] == [3, 3]
    with pytest.raises(NoOtherPromptError, match=r"t:0: all answers are to one prompt"):
        with_mismatched(examples_of(WANTED, same), 16)


def test_one_that_does_not_fit_gives_way_to_the_next():
    long = ([7, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1])
    found, dropped = with_mismatched(examples_of(WANTED, long, UNWANTED), 6)
    assert rows_of(found)[0][0] == [5, 6, 7, 8, 3]
    assert [(number, row.id, row.tokens) for number, row in dropped] == [(1, "t:1", 6)]
    assert dropped[0][1].reason == "longer than 6 tokens with an answer to another prompt"
    assert list(found.ids) == ["t:0", "t:2"]


def test_groups_and_sources_stay_with_their_rows():
    rows = (WANTED, ([7] * 6, [0, *[1] * 5], [0, *[1] * 5]), UNWANTED)
    examples = TokenizedExamples.from_examples(
        [row[:2] for row in rows], list("abc"), list("xyx"), list("pqr"), [np.array(row[2], np.uint8) for row in rows]
    )
    found, _ = with_mismatched(examples, 6)
    assert [found.groups[number] for number in range(2)] == ["x", "x"]
    assert [found.sources[number] for number in range(2)] == ["p", "r"]
    assert found.supervised.tolist() == [3, 3]
    assert found.fingerprint() != examples.fingerprint()
