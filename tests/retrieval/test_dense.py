"""Vectors: what an embedder must give, and the one that comes with a package."""

import importlib.util
import logging
import sys

import numpy as np
import pytest

from sft_jax.retrieval.dense import WordLlamaEmbedder, embedded, embedder_of
from tests.retrieval.embedders import Counts

needs_wordllama = pytest.mark.skipif(importlib.util.find_spec("wordllama") is None, reason="requirements-dense.txt")


class Given:
    name = "given"

    def __init__(self, vectors):
        self.vectors = vectors

    def __call__(self, texts):
        return self.vectors


BAD = {
    "float64": (np.eye(2), r"given: expected float32 \[2, dim\], got float64 \(2, 2\)"),
    "too few": (np.eye(1, dtype=np.float32), r"expected float32 \[2, dim\], got float32 \(1, 1\)"),
    "a list": ([[1.0], [1.0]], r"expected float32 \[2, dim\], got list"),
    "too long": (2 * np.eye(2, dtype=np.float32), "the vector of 'a' has length 2; expected 1"),
    "nothing": (np.float32([[1, 0], [0, 0]]), "the vector of 'b' has length 0; expected 1"),
    "no number": (np.float32([[1, 0], [np.nan, 0]]), "the vector of 'b' has length nan; expected 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_vectors_that_are_none_are_refused(case):
    vectors, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        embedded(Given(vectors), ["a", "b"])


def test_good_vectors():
    np.testing.assert_allclose(embedded(Counts(), ["red red", "red blue"]), [[1, 0, 0], [0.5**0.5, 0.5**0.5, 0]])


def test_words_need_no_embedder():
    assert embedder_of("bm25") is None


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"wordllama, which is not installed: pip install -r requirements-dense\.txt"):
        embedder_of("dense")


@needs_wordllama
def test_meanings_that_are_near_and_far():
    handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
    embedder = WordLlamaEmbedder()
    assert "wordllama 0.4" in embedder.name
    assert embedder.name == WordLlamaEmbedder().name
    texts = ["The doctor examined the patient.", "A physician saw a sick person.", "Stock prices fell on Monday."]
    vectors = embedded(embedder, texts)
    assert vectors.shape == (3, 256)
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > far + 0.2
    np.testing.assert_allclose(embedded(embedder, texts[:1]), vectors[:1], atol=1e-6)
    assert (logging.getLogger().handlers, logging.getLogger().level) == (handlers, level)
    assert "wordllama" in sys.modules
