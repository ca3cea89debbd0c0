"""Can two systems be told apart by how they write? A classifier tries, on answers to prompts it has not seen."""

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64

from sft_jax.evaluation.statistics import (
    CONFIDENCE,
    ELEMENTS_AT_ONCE,
    Score,
    bootstrap_interval,
    mean_columns,
    ratio_of_sums,
    wilson,
)

FOLDS = 5
AUC_RESAMPLES = 1_999  # each sorts all answers


@dataclasses.dataclass(frozen=True)
class Distinguishable:
    """How well answers are attributed to their system: 0.5 is guessing, 1 is always.

    Attributes:
        accuracy: share of answers that are attributed rightly.
        auc: probability that an answer of the second system looks more like the second than one of the first does.
    """

    accuracy: Score
    auc: Score


def distinguishable(answers_a: Sequence[str], answers_b: Sequence[str], seed: int) -> Distinguishable:
    """Tells the answers of two systems to the same prompts apart, by character n-grams of orders 1 to 3.

    A logistic regression on tf-idf weights (scikit-learn), in 5-fold cross-validation in which both answers to a prompt
    lie in the same fold: what both say about a prompt tells nothing. `seed` shuffles the folds and draws the resamples.
    Intervals are BCa bootstraps over prompts of the classifications as they are; that other training folds would have
    given others is not in them. Systems that write alike come out a little below 0.5 where prompts are few (on drawn
    words, an AUC of 0.42 with 60 prompts and 0.48 with 200): what a fold lacks, the others have too much of.

    Raises:
        ValueError: unequal numbers of answers, fewer than 10 prompts, or no answer with a text.
    """
    prompts = len(answers_a)
    if prompts != len(answers_b):
        raise ValueError(f"distinguishable: {prompts} answers against {len(answers_b)}; give two to each prompt")
    if prompts < 2 * FOLDS:
        raise ValueError(f"distinguishable: {prompts} prompts are too few; at least {2 * FOLDS}")
    if not any(text.strip() for text in (*answers_a, *answers_b)):
        raise ValueError("distinguishable: no answer has a text")
    looks = _looks_like_second([*answers_a, *answers_b], seed).reshape(2, prompts)
    right = ((looks[0] <= 0).astype(np.float64) + (looks[1] > 0)) / 2
    accuracy = bootstrap_interval(mean_columns(right), ratio_of_sums, seed=seed, maximum=1.0)
    return Distinguishable(accuracy, _auc_score(looks, seed))


def _looks_like_second(texts: Sequence[str], seed: int) -> Float[np.ndarray, " answers"]:
    """Log-odds of each text's being of the second system, by a classifier that has not seen its prompt."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # slow to import
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    prompts = len(texts) // 2
    classifier = make_pipeline(
        TfidfVectorizer(analyzer="char", ngram_range=(1, 3), lowercase=False, sublinear_tf=True),
        LogisticRegression(C=10, max_iter=1_000),  # with C=1 some of 60 answers that end with "!" are missed
    )
    folds = GroupKFold(FOLDS, shuffle=True, random_state=seed)
    systems = np.repeat([0, 1], prompts)
    of_prompt = np.tile(np.arange(prompts), 2)
    return cross_val_predict(classifier, texts, systems, groups=of_prompt, cv=folds, method="decision_function")


def _auc_score(looks: Float[np.ndarray, "2 prompts"], seed: int) -> Score:
    from scipy import stats  # slow to import

    prompts = looks.shape[1]

    def of_prompts(drawn: Int64[np.ndarray, "... drawn"], axis: int) -> Float[np.ndarray, "..."]:
        return area_under_curve(looks[0][drawn], looks[1][drawn], axis)

    value = float(of_prompts(np.arange(prompts), -1))
    options = {"n_resamples": AUC_RESAMPLES, "batch": max(1, ELEMENTS_AT_ONCE // prompts), "vectorized": True}
    with warnings.catch_warnings(action="ignore"):  # all resamples alike is a case of its own
        found = stats.bootstrap(
            (np.arange(prompts),), of_prompts, confidence_level=CONFIDENCE, rng=np.random.default_rng(seed), **options
        )
    limits = found.confidence_interval
    if np.isnan(limits).any():  # always told apart, or never
        return wilson(value * prompts, prompts)
    return Score(value, float(limits.low), float(limits.high))


def area_under_curve(
    first: Float[np.ndarray, "..."], second: Float[np.ndarray, "..."], axis: int = -1
) -> Float[np.ndarray, "..."]:
    """Probability that a value of `second` is above one of `first`, ties half (Mann and Whitney 1947)."""
    from scipy import stats

    count = second.shape[axis]
    ranks = stats.rankdata(np.concatenate([second, first], axis), axis=axis)
    of_second = np.take(ranks, np.arange(count), axis).sum(axis)
    return np.asarray((of_second - count * (count + 1) / 2) / (count * first.shape[axis]))
