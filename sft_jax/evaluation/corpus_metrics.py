"""BLEU and chrF from summed n-gram counts, for many resamples at once.

sacrebleu counts the n-grams of each answer (`scorers/translation.py`) and these formulas are its own, for arrays: its
functions take the sums of one corpus at a time.
"""

import numpy as np
from jaxtyping import Float

ORDERS = 4  # of BLEU's n-grams
BETA = 2  # of chrF: recall counts beta times as much as precision
TINY = 1e-300


def corpus_bleu(sums: Float[np.ndarray, "... 10"]) -> Float[np.ndarray, "..."]:
    """BLEU in [0, 100] (Papineni et al. 2002) with sacrebleu's default, exponential smoothing.

    `sums`: length of the answers, of the references, matched n-grams of orders 1 to 4, n-grams of the answers.
    """
    length, reference_length = sums[..., 0], sums[..., 1]
    matched, total = sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS :]
    brevity = np.where(length < reference_length, np.exp(1 - reference_length / np.maximum(length, TINY)), 1.0)
    halvings = np.cumsum((matched == 0) & (total > 0), axis=-1)  # the k-th order without a match counts as 1 / 2^k
    precisions = 100.0 * np.where(matched > 0, matched, 0.5**halvings) / np.maximum(total, 1)
    score = brevity * np.exp(np.log(precisions).sum(-1) / ORDERS)
    return np.where(matched.any(-1) & (total > 0).all(-1), score, 0.0)


def corpus_chrf(sums: Float[np.ndarray, "... columns"]) -> Float[np.ndarray, "..."]:
    """chrF (Popović 2015) or chrF++ (Popović 2017) in [0, 100], without smoothing, as sacrebleu's default.

    `sums`: for each order the n-grams of the answers, of the references, and those matched.
    """
    answers, references, matched = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
    counts = (answers > 0) & (references > 0)
    orders = np.maximum(counts.sum(-1), 1)
    precision = np.where(counts, matched / np.maximum(answers, 1), 0.0).sum(-1) / orders
    recall = np.where(counts, matched / np.maximum(references, 1), 0.0).sum(-1) / orders
    weighted = np.maximum(BETA**2 * precision + recall, TINY)
    return np.asarray(100.0 * (1 + BETA**2) * precision * recall / weighted)
