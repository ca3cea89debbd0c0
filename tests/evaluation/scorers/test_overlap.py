"""ROUGE-L, BLEU and chrF against rouge-score and sacrebleu."""

import random

import numpy as np
import pytest
import sacrebleu
from rouge_score import rouge_scorer

from sft_jax.evaluation.corpus_metrics import corpus_bleu
from sft_jax.evaluation.scoring import aggregate, compare
from tests.evaluation.scored import score, scored

WORDS = ["the", "cat", "sat", "on", "a", "mat,", "while", "Dogs'", "12", "ears", "–", "naïve?", "(very)", "x."]


def texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 14))) for _ in range(count)]


ANSWERS, REFERENCES = ["", "the cat", *texts(60, 0)], ["the cat sat", "the cat", *texts(60, 1)]


def test_rouge_l_by_hand():
    # Common subsequence "police the gunman" of 4 and 5 words.
    assert score("rouge_l", "police kill the gunman", "the police ended the Gunman.")["rouge_l"] == 2 * 3 / (4 + 5)
    assert score("rouge_l", "", "a")["rouge_l"] == 0
    assert score("rouge_l", "猫 が 座った", "猫 座った")["rouge_l"] == 4 / 5
    with pytest.raises(ValueError, match="the reference has no words: '!'"):
        score("rouge_l", "a", "!")


def test_rouge_l_is_that_of_rouge_score():
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    for answer, reference in zip(ANSWERS, REFERENCES, strict=True):
        ascii_only = [text.encode("ascii", "ignore").decode() for text in (answer, f"{reference} end")]
        expected = scorer.score(ascii_only[1], ascii_only[0])["rougeL"].fmeasure
        assert score("rouge_l", *ascii_only)["rouge_l"] == pytest.approx(expected, abs=1e-12)


CORPUS = [
    ("bleu", {}, "bleu", lambda a, r: sacrebleu.corpus_bleu(a, [r])),
    (
        "bleu",
        {"tokenizer": "char", "lowercase": True},
        "bleu",
        lambda a, r: sacrebleu.corpus_bleu(a, [r], tokenize="char", lowercase=True),
    ),
    ("chrf", {}, "chrf", lambda a, r: sacrebleu.corpus_chrf(a, [r])),
    ("chrf", {"word_order": 2}, "chrf_plus_plus", lambda a, r: sacrebleu.corpus_chrf(a, [r], word_order=2)),
]


@pytest.mark.parametrize(("spec", "options", "metric", "reference"), CORPUS)
@pytest.mark.parametrize(
    ("answers", "references"),
    [
        (ANSWERS, REFERENCES),
        (REFERENCES, REFERENCES),
        (["the cat sat on", "x y z"], ["the cat sat off", "the dog"]),  # no 4-gram matches: smoothed
        (["a b"], ["a b"]),  # there are no 4-grams
        (["x"], ["y"]),
        (["", ""], ["a", "b"]),
    ],
)
def test_the_corpus_score_is_that_of_sacrebleu(spec, options, metric, reference, answers, references):
    scores = aggregate(scored(spec, answers, references, **options), seed=0)
    assert list(scores) == [metric]
    assert scores[metric].value == pytest.approx(reference(answers, references).score, rel=1e-12, abs=1e-12)


def test_resampled_bleu_is_sacrebleus_of_the_resampled_corpus():
    outcomes = scored("bleu", ANSWERS, REFERENCES)
    drawn = np.random.default_rng(0).integers(0, len(ANSWERS), (5, len(ANSWERS)))
    sums = np.array([outcome["bleu"] for outcome in outcomes], np.float64)[drawn].sum(1)
    for row, found in zip(drawn, corpus_bleu(sums), strict=True):
        expected = sacrebleu.corpus_bleu([ANSWERS[i] for i in row], [[REFERENCES[i] for i in row]])
        assert found == pytest.approx(expected.score, rel=1e-12)


def test_intervals_and_comparisons_are_on_the_scale_of_the_score():
    outcomes, perfect = scored("bleu", ANSWERS, REFERENCES), scored("bleu", REFERENCES, REFERENCES)
    found = aggregate(outcomes, seed=0)["bleu"]
    assert 0 < found.low < found.value < found.high < 100
    best = aggregate(perfect, seed=0)["bleu"]
    assert (best.value, best.high) == pytest.approx((100, 100))
    assert 90 < best.low < 100
    comparison = compare(outcomes, perfect, seed=0)["bleu"]
    assert comparison.difference.value == pytest.approx(100 - found.value)
    assert comparison.p_value < 0.001
