"""Several answers to each example, sampled: pass@k, and the best of n.

Both make outcomes of outcomes, which `scoring.py` aggregates and compares like any others.
"""

from collections.abc import Sequence

from sft_jax.evaluation.metrics import higher_is_better
from sft_jax.evaluation.scorers.cases import Outcome, is_right


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Unbiased estimate of the probability that one of k answers is right, from `right` of `samples` (Chen et al.
    2021).

    1 - C(samples - right, k) / C(samples, k).

    >>> pass_at_k(5, 2, 3)  # 1 - 1 / 10
    0.9

    Raises ValueError unless 0 <= right <= samples and 1 <= k <= samples.
    """
    if not (0 <= right <= samples and 1 <= k <= samples):
        raise ValueError(
            f"pass@k: expected 0 <= right <= samples and 1 <= k <= samples, got {right} of {samples} and k = {k}"
        )
    none_right = 1.0
    for number in range(k):
        none_right *= max(samples - right - number, 0) / (samples - number)
    return 1.0 - none_right


def pass_outcomes(samples: Sequence[Sequence[Outcome]], ks: Sequence[int]) -> list[Outcome]:
    """{"pass@k": estimate} of each example, from the outcomes of its answers; `ks` are the k.

    Raises ValueError where a scorer does not judge answers right or wrong (`is_right`), or an example
    has fewer answers than k.
    """
    outcomes = []
    for number, answers in enumerate(samples):
        judged = [is_right(answer) for answer in answers]
        if None in judged:
            raise ValueError(
                f"pass@k: example {number} has an outcome that is neither right nor wrong: "
                f"{answers[judged.index(None)]}"
            )
        outcomes.append({f"pass@{k}": pass_at_k(len(judged), sum(map(bool, judged)), k) for k in ks})
    return outcomes


def likeliest_of_n(samples: Sequence[Sequence[Outcome]], logprobs: Sequence[Sequence[float]]) -> list[Outcome]:
    """The outcome of the answer with the highest log-probability to each example; the first of several that are equal.

    It needs no reference: what choosing among n answers reaches without one.
    """
    return [
        answers[max(range(len(answers)), key=of_example.__getitem__)]
        for answers, of_example in zip(samples, logprobs, strict=True)
    ]


def best_of_n(samples: Sequence[Sequence[Outcome]], column: str) -> list[Outcome]:
    """The best outcome of each example by a bool or float column; the first of several that are equal.

    It is best by the reference, so it bounds what choosing among n answers can reach. An outcome without a value
    is best only where all are.

    Raises ValueError where an example has no answers, there is no such column, or its metric has no better end.
    """
    better = higher_is_better(column)
    if better is None:
        raise ValueError(f"best of n: {column!r} is neither better high nor low")
    best = []
    for number, answers in enumerate(samples):
        if not answers:
            raise ValueError(f"best of n: example {number} has no answers")
        for answer in answers:
            if column not in answer or not isinstance(answer[column], bool | float | None):
                raise ValueError(f"best of n: example {number}: no bool or float column {column!r} in {dict(answer)}")
        value = lambda answer: -1e9 if answer[column] is None else (1 if better else -1) * float(answer[column])
        best.append(max(answers, key=value))
    return best
