"""BM25 beside its formula, written out."""

import math
import subprocess
import sys

import numpy as np
import pytest

from sft_jax.retrieval.bm25 import WordIndex

TEXTS = ["The cat sat. The cat!", "the dog", "A dog saw the cat, and ran"]
TOKENS = [["the", "cat", "sat", "the", "cat"], ["the", "dog"], ["a", "dog", "saw", "the", "cat", "and", "ran"]]


def expected(query, k1=1.5, b=0.75):
    mean = sum(map(len, TOKENS)) / len(TOKENS)
    scores = []
    for tokens in TOKENS:
        score = 0.0
        for word in query:
            having = sum(word in other for other in TOKENS)
            idf = math.log(1 + (len(TOKENS) - having + 0.5) / (having + 0.5))
            count = tokens.count(word)
            score += idf * count / (count + k1 * (1 - b + b * len(tokens) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize(
    ("query", "words"),
    [("CAT", ["cat"]), ("the dog?", ["the", "dog"]), ("cat cat", ["cat", "cat"]), ("sat ran bird", ["sat", "ran"])],
)
def test_scores_are_those_of_the_formula(query, words):
    np.testing.assert_allclose(WordIndex.of(TEXTS).scores(query), expected(words), rtol=1e-5)


@pytest.mark.parametrize("query", ["bird", "?!", "", "catsat"])
def test_a_query_without_a_known_word_scores_nothing(query):
    assert WordIndex.of(TEXTS).scores(query).tolist() == [0.0, 0.0, 0.0]


def test_characters_without_spaces_are_words():
    scores = WordIndex.of(["图书馆九点开门", "猫在睡觉"]).scores("什么时候开门?")
    assert scores[0] > 0
    assert scores[1] == 0


def test_saved_and_loaded(tmp_path):
    made = WordIndex.of(TEXTS)
    made.save(tmp_path / "bm25")
    for query in ("cat", "the dog", "bird"):
        np.testing.assert_array_equal(WordIndex.load(tmp_path / "bm25").scores(query), made.scores(query))


def test_texts_without_any_word_are_refused():
    with pytest.raises(ValueError, match="none of 2 chunks has a word"):
        WordIndex.of(["?", "…"])


def test_searching_imports_no_jax_and_says_nothing():
    """Where it finds JAX, the library runs a program when it is imported, which chooses devices."""
    code = (
        "import logging, sys; from sft_jax.retrieval import Chunk, open_index; logging.basicConfig(level=0); "
        "print(len(open_index(None, [Chunk('a', 'b', 'c')], 'bm25').search(['c'], 1)[0]), 'jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("1 False\n", "")
