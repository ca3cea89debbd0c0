"""Texts that may differ in wording: ROUGE-L, BLEU and chrF."""

import re
from typing import Literal

from sft_jax.evaluation.scorers.cases import Case, Outcome, Scorer

_WORD = re.compile(r"[^\W_]+")


def rouge_l() -> Scorer:
    """`rouge_l`: F1 of the longest common subsequence of words (Lin 2004), averaged over examples.

    As `rouge-score` computes it without stemming, but that words are runs of letters and digits of any script, where
    that package drops all that is not ASCII.
    """

    def score(prediction: str, case: Case) -> Outcome:
        answer, reference = (_WORD.findall(text.lower()) for text in (prediction, case.reference))
        if not reference:
            raise ValueError(f"rouge_l: the reference has no words: {case.reference[:80]!r}")
        return {"rouge_l": 2 * common_subsequence(answer, reference) / (len(answer) + len(reference))}

    return score


def common_subsequence(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence, with a bit for each word of `first` (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(first)) - 1
    unmatched = every
    for word in second:
        matched = unmatched & places.get(word, 0)
        unmatched = ((unmatched + matched) | (unmatched - matched)) & every
    return len(first) - unmatched.bit_count()


def bleu(*, tokenizer: Literal["13a", "intl", "zh", "char", "none"] = "13a", lowercase: bool = False) -> Scorer:
    """`bleu`: corpus BLEU in [0, 100], by sacrebleu (Post 2018) with its default smoothing; one reference.

    Tokenizers are those of sacrebleu that need neither a download nor another package.
    """
    from sacrebleu.metrics import BLEU  # slow to import

    metric = BLEU(tokenize=tokenizer, lowercase=lowercase)

    def score(prediction: str, case: Case) -> Outcome:
        counted = metric.corpus_score([prediction], [[case.reference]])
        return {"bleu": [counted.sys_len, counted.ref_len, *counted.counts, *counted.totals]}

    return score


def chrf(*, word_order: Literal[0, 2] = 0, lowercase: bool = False) -> Scorer:
    """`chrf`, or with `word_order=2` `chrf_plus_plus`: corpus chrF or chrF++ in [0, 100], by sacrebleu."""
    from sacrebleu.metrics import CHRF  # slow to import

    metric = CHRF(word_order=word_order, lowercase=lowercase)
    name = "chrf_plus_plus" if word_order else "chrf"

    def score(prediction: str, case: Case) -> Outcome:
        # A score of sacrebleu's chrF does not hold the counts it is made of.
        (counts,) = metric._extract_corpus_statistics([prediction], [[case.reference]])
        return {name: list(counts)}

    return score
