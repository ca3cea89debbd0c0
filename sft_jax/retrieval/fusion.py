"""Several rankings as one: reciprocal rank fusion (Cormack, Clarke and Büttcher 2009)."""

import collections
from collections.abc import Sequence

K = 60  # of the paper: the larger, the less the first ranks count


def reciprocal_rank_fusion(rankings: Sequence[Sequence[int]], k: int = K) -> list[tuple[int, float]]:
    """What stands in any of the rankings, the best first; the lower number first where scores are equal.

    Two rankings, [7, 4] and [4, 9], with k = 60: 4 has 1/62 + 1/61 = 0.0325, 7 has 1/61 = 0.0164, 9 has 1/62 = 0.0161.

    Args:
        rankings: numbers of what was found, the best first, each at most once.
        k: added to each rank, from 1.

    Returns:
        (number, sum over the rankings it stands in of 1 / (k + rank)).
    """
    scores: dict[int, float] = collections.defaultdict(float)
    for ranking in rankings:
        for rank, number in enumerate(ranking, 1):
            scores[number] += 1 / (k + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))
