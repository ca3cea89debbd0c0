"""How good a search is, for questions of which it is known which documents answer them.

One outcome for each question, as evaluation/ aggregates them, so that means have intervals and two searches can be
compared in pairs.
"""

from collections.abc import Collection, Mapping, Sequence

from sft_jax.retrieval.index import Passage


def outcomes_of(
    found: Sequence[Sequence[Passage]],
    relevant: Sequence[Collection[str]],
    document_ids: Collection[str],
    ks: Sequence[int],
) -> list[Mapping[str, float | bool]]:
    """What the search found for each question.

    Args:
        found: passages of each question, the best first: as many as the largest of `ks` were searched for.
        relevant: ids of the documents that answer each question.
        document_ids: of all documents of the corpus.
        ks: numbers of passages to look at.

    Returns:
        For each question "recall@k" and "hit@k" for every k, and "reciprocal_rank", whose mean is the MRR.

    Raises:
        ValueError: a question without a relevant document, or with one that the corpus does not have; names it.
    """
    known = frozenset(document_ids)
    outcomes = []
    for number, (passages, wanted) in enumerate(zip(found, relevant, strict=True), 1):
        missing = sorted(set(wanted) - known)
        if missing or not wanted:
            what = f"documents that the corpus does not have: {', '.join(missing)}" if missing else "no document"
            raise ValueError(f"question {number} is answered by {what}; nothing could find it. Leave the question out.")
        ids = [passage.document_id for passage in passages]
        outcome: dict[str, float | bool] = {"reciprocal_rank": reciprocal_rank(ids, wanted)}
        for k in ks:
            outcome |= {f"recall@{k}": recall(ids, wanted, k), f"hit@{k}": hit(ids, wanted, k)}
        outcomes.append(outcome)
    return outcomes


def recall(found: Sequence[str], relevant: Collection[str], k: int) -> float:
    """The share of the relevant documents that are among the first k found.

    Args:
        found: ids of documents, the best first; one that several passages are of stands there several times.
        relevant: ids of documents, at least one.
        k: how many of `found` are looked at.
    """
    return len(set(found[:k]) & set(relevant)) / len(set(relevant))


def hit(found: Sequence[str], relevant: Collection[str], k: int) -> bool:
    """Whether any of the relevant documents is among the first k found."""
    return not set(found[:k]).isdisjoint(relevant)


def reciprocal_rank(found: Sequence[str], relevant: Collection[str]) -> float:
    """1 / the rank, from 1, of the first that is relevant; 0 where none was found (Voorhees 1999)."""
    return next((1 / rank for rank, name in enumerate(found, 1) if name in relevant), 0.0)
