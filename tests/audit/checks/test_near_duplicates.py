"""Shingles, MinHash and near duplicates, against exact similarities."""

import itertools
import sys

import numpy as np
import pytest

from sft_jax.audit.checks.near_duplicates import near_contradictions, near_duplicates
from sft_jax.data.similarity.groups import similar_groups
from sft_jax.data.similarity.minhash import BINS, candidates, signatures
from sft_jax.data.similarity.shingles import Vocabulary, character_shingles, jaccard, windows, words

SENTENCE = "card bank money pay lost stolen why when did my the a transfer fee late new old pin code app"
WORDS = SENTENCE.split()


def sentence(rng, length=12):
    return " ".join(rng.choice(WORDS, length))


def changed(rng, text, count):
    """The text with `count` of its words replaced."""
    parts = text.split()
    for at in rng.choice(len(parts), count, replace=False):
        parts[at] = f"x{rng.integers(1000)}"
    return " ".join(parts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  I’ve  GOT it!", ["i", "ve", "got", "it"]),
        ("Straße ﬁn", ["strasse", "fin"]),  # case folded, ligature taken apart
        ("你好 world", ["你", "好", "world"]),
        ("...", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


def test_character_shingles_are_the_sets_of_pieces():
    texts = ["To be!", "", "abc", "to be or not to be"]
    shingles = character_shingles(texts, 4)
    assert np.diff(shingles.offsets).tolist() == [2, 1, 1, 15]
    pieces = [
        {line[i : i + 4] for i in range(len(line) - 3)} for line in ("to be", "    ", "abc ", "to be or not to be")
    ]
    for (a, first), (b, second) in itertools.combinations(enumerate(pieces), 2):
        assert jaccard(shingles.of(a), shingles.of(b)) == len(first & second) / len(first | second)


def test_windows_do_not_cross_rows():
    vocabulary = Vocabulary()
    numbers, offsets = vocabulary.numbers(["a b c", "a", "b c", "a b c d"])
    pairs = windows(numbers, offsets, 2)
    assert np.diff(pairs.offsets).tolist() == [2, 0, 1, 3]
    ab, bc = pairs.of(0)
    assert pairs.of(2).tolist() == [bc]
    assert pairs.of(3)[:2].tolist() == [ab, bc]
    assert len(set(pairs.hashes.tolist())) == 3
    assert pairs.texts.tolist() == [0, 0, 2, 3, 3, 3]


def test_signatures_estimate_the_similarity():
    """The mean error over pairs of known similarity is small, and a single one stays within four deviations."""
    rng = np.random.default_rng(0)
    errors = []
    for count in (0, 1, 2, 4, 8, 12):
        for _ in range(20):
            text = sentence(rng, 40)
            shingles = character_shingles([text, changed(rng, text, count)])
            exact = jaccard(shingles.of(0), shingles.of(1))
            found = signatures(shingles)
            errors.append((found[0] == found[1]).mean() - exact)
            assert abs(errors[-1]) <= 4 * np.sqrt(exact * (1 - exact) / BINS) + 1e-9
    assert abs(np.mean(errors)) < 0.01


@pytest.mark.parametrize("length", [1, 3, 100])
def test_signatures_of_short_rows_have_no_empty_bins(length):
    shingles = character_shingles(["x" * length, "x" * length, "y" * (length + 1)])
    found = signatures(shingles)
    assert (found[0] == found[1]).all()
    assert (found[0] != found[2]).all()


def test_candidates_are_linear_in_the_rows():
    shingles = character_shingles(["all the same text here"] * 50)
    pairs = list(candidates(signatures(shingles), 0.9))
    assert sorted({pair[1] for pair in pairs}) == list(range(1, 50))
    assert len(pairs) <= 2 * 50


def test_groups_are_those_of_the_exact_comparison():
    rng = np.random.default_rng(1)
    texts = []
    for _ in range(24):
        text = sentence(rng, 20)
        texts += [text, changed(rng, text, 1), changed(rng, text, 3), sentence(rng, 20)]
    shingles = character_shingles(texts)
    exact = {
        pair
        for pair in itertools.combinations(range(len(texts)), 2)
        if jaccard(shingles.of(pair[0]), shingles.of(pair[1])) >= 0.8
    }
    assert len(exact) > 20  # the test means something
    found = {pair for group in similar_groups(texts) for pair in itertools.combinations(group, 2)}
    linked = {row for pair in found for row in pair}
    assert exact <= found
    assert linked == {row for pair in exact for row in pair}
    assert similar_groups(texts) == similar_groups(texts)


def test_a_prompt_template_makes_no_rows_alike():
    rng = np.random.default_rng(2)
    template = "Classify the message of a customer into one of the following: " + ", ".join(WORDS * 3) + ": "
    texts = [template + sentence(rng) for _ in range(150)]
    texts[7] = texts[3] + "!"
    assert similar_groups(texts) == [[3, 7]]


@pytest.mark.parametrize("similarity", [0.5, 1.1])
def test_similarities_that_cannot_be_found(similarity):
    with pytest.raises(ValueError, match=r"between 0.7 and 1"):
        similar_groups(["a", "b"], similarity)


def test_exact_copies_are_not_counted_and_labels_compared(checked):
    rng = np.random.default_rng(3)
    pairs = [(sentence(rng, 15), f"label {n % 2}") for n in range(20)]
    pairs += [pairs[0], (pairs[1][0] + " now", "label 0"), (pairs[2][0] + " !", "label 0")]
    (near,), (differ,) = near_duplicates(checked(*pairs)), near_contradictions(checked(*pairs))
    assert (near.count, near.numbers["groups"]) == (2, 2)
    assert near.examples[0].row_id == "a:2"
    assert differ.count == 1
    assert differ.examples[0].text.endswith(f"a:22: {pairs[21][0]} -> label 0")
    assert near_duplicates(checked(*pairs[:20])) == near_contradictions(checked(*pairs[:20])) == []
    twice = checked(pairs[0], (pairs[0][0], "label 1"), *pairs[:19])  # the same prompt: a contradiction, not near one
    assert near_contradictions(twice) == []
    assert (
        near_contradictions(checked(*((question, f"{answer} of {n}") for n, (question, answer) in enumerate(pairs))))
        == []
    )


def test_groups_are_looked_for_once(checked, monkeypatch):
    calls = []
    module = sys.modules[near_duplicates.__module__]  # whose name in the package is that of the check
    monkeypatch.setattr(module, "similar_groups", lambda texts: calls.append(len(texts)) or [])
    one = checked(*((f"question {number}", f"label {number % 2}") for number in range(20)))
    assert near_duplicates(one) == near_contradictions(one) == []
    assert calls == [20]
