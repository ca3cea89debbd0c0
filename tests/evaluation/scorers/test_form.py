"""Style, length and repetition by hand."""

import math

import pytest

from sft_jax.evaluation.metrics import higher_is_better
from sft_jax.evaluation.scoring import aggregate, compare
from tests import tiny
from tests.evaluation.scored import score, scored


@pytest.mark.parametrize(
    ("answer", "reference", "order", "similarity"),
    [
        ("aab", "aab", 1, 1.0),
        ("aab", "ab", 1, 3 / math.sqrt(5 * 2)),  # (2, 1) and (1, 1)
        ("ab", "cd", 1, 0.0),
        ("ab", "a", 2, 1 / math.sqrt(3 * 2)),  # " a", "ab", "b " and " a", "a "
        ("a \n b", "a b", 3, 1.0),
        ("", "a", 3, 0.0),
    ],
)
def test_style_is_the_cosine_of_ngram_counts(answer, reference, order, similarity):
    assert score("style", answer, reference, order=order)["style_similarity"] == pytest.approx(similarity)


@pytest.mark.parametrize(
    ("answer", "options", "within"),
    [
        ("four", {"most": 4}, True),
        ("four ", {"most": 4}, False),
        ("", {"most": 0}, True),
        ("", {"least": 1, "most": 4}, False),
        ("one two\nthree", {"least": 3, "most": 3, "unit": "words"}, True),
        ("one two", {"least": 3, "most": 3, "unit": "words"}, False),
    ],
)
def test_length(answer, options, within):
    assert score("length", answer, **options) == {"within_length": within}


def test_length_in_tokens(tmp_path):
    """The tiny tokenizer has one token a byte."""
    tiny.tokenizer().save_pretrained(tmp_path)
    options = {"unit": "tokens", "tokenizer": str(tmp_path), "most": 3}
    assert [score("length", text, **options)["within_length"] for text in ("abc", "abcd", "é!", "éé")] == [
        *(True, False, True, False)
    ]


def test_length_ratio_is_a_ratio_of_sums_that_does_not_judge():
    outcomes = scored("length_ratio", ["four", "eighteen"], ["ab", "a  b"])
    assert outcomes == [
        {"answer_length": 4, "reference_length": 2},
        {"answer_length": 8, "reference_length": 3},
    ]
    assert aggregate(outcomes, seed=0)["length_ratio"].value == pytest.approx(12 / 5)
    assert score("length_ratio", "a b c", "a b", unit="words") == {"answer_length": 3, "reference_length": 2}
    assert higher_is_better("length_ratio") is None
    shorter = scored("length_ratio", ["ab", "a b"], ["ab", "a  b"])
    assert compare(outcomes, shorter, seed=0)["length_ratio"].difference.value == pytest.approx(1 - 12 / 5)


@pytest.mark.parametrize(
    ("answer", "options", "repeated"),
    [
        ("a b c d", {}, 0.0),
        ("a b a b a b", {"order": 2}, 3 / 5),  # ab ba ab ba ab
        ("no no no", {"order": 1}, 2 / 3),
        ("aaaa", {"order": 2, "unit": "characters"}, 2 / 3),
        ("a b", {}, None),
        ("", {"order": 1}, None),
    ],
)
def test_repetition(answer, options, repeated):
    outcome = score("repetition", answer, **options)
    assert outcome["repetition"] == (None if repeated is None else pytest.approx(repeated))
    assert outcome["distinct"] == (None if repeated is None else pytest.approx(1 - repeated))


def test_answers_without_ngrams_are_left_out():
    outcomes = scored("repetition", ["no no", "", "a b"], [""] * 3, order=1)
    assert aggregate(outcomes, seed=0)["repetition"].value == pytest.approx(0.25)
    assert higher_is_better("repetition") is False
    assert aggregate(scored("repetition", ["a b"] * 3 + ["a a"], [""] * 4, order=1), seed=0)["repetition"].low >= 0


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("style", {}, "style: the reference has no text"),
        ("length_ratio", {}, "length_ratio: the reference is empty"),
        ("style", {"order": 0}, "order must be at least 1"),
        ("repetition", {"order": 0}, "order must be at least 1"),
        ("repetition", {"order": 2.5}, "must be a whole number"),
        ("length_ratio", {"unit": "lines"}, "one of 'characters', 'words'"),
        ("length", {"most": 1, "least": 2}, "expected 0 <= least <= most, got least=2 and most=1"),
        ("length", {"most": 1, "unit": "tokens"}, "tokens, and they alone, need a tokenizer"),
        ("length", {"most": 1, "tokenizer": "x"}, "tokens, and they alone, need a tokenizer"),
    ],
)
def test_refused(spec, options, message):
    with pytest.raises(ValueError, match=message):
        score(spec, "a", " ", **options)
