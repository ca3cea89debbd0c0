"""Recall, hits and reciprocal ranks, by hand."""

import pytest

from sft_jax.retrieval.index import Passage
from sft_jax.retrieval.quality import outcomes_of

CORPUS = ("a", "b", "c", "d")
CASES = [  # documents of the passages found, relevant ones -> reciprocal rank, recall@1, hit@1, recall@3, hit@3
    ("abc", {"a"}, (1.0, 1.0, True, 1.0, True)),
    ("bac", {"a"}, (0.5, 0.0, False, 1.0, True)),
    ("bcd", {"a"}, (0.0, 0.0, False, 0.0, False)),
    ("", {"a"}, (0.0, 0.0, False, 0.0, False)),
    ("aac", {"a", "b"}, (1.0, 0.5, True, 0.5, True)),  # two passages of one document
    ("cba", {"a", "b"}, (0.5, 0.0, False, 1.0, True)),
    ("bcda", {"a"}, (0.25, 0.0, False, 0.0, False)),
]


@pytest.mark.parametrize(("found", "relevant", "expected"), CASES)
def test_one_question(found, relevant, expected):
    passages = [Passage(f"{name}{rank}", name, "", 1 / rank, rank) for rank, name in enumerate(found, 1)]
    (outcome,) = outcomes_of([passages], [relevant], CORPUS, (1, 3))
    names = ("reciprocal_rank", "recall@1", "hit@1", "recall@3", "hit@3")
    assert outcome == dict(zip(names, expected, strict=True))


@pytest.mark.parametrize(
    ("relevant", "message"),
    [
        ({"a", "x", "y"}, "question 2 is answered by documents that the corpus does not have: x, y"),
        (set(), "question 2 is answered by no document"),
    ],
)
def test_a_question_that_nothing_could_answer_is_refused(relevant, message):
    with pytest.raises(ValueError, match=message):
        outcomes_of([[], []], [{"a"}, relevant], CORPUS, (1,))
