"""Groups of texts that are nearly the same: found by MinHash, proven by their exact similarity."""

from collections.abc import Iterator, Sequence

import numpy as np

from sft_jax.data.labels import labels_of
from sft_jax.data.similarity.minhash import candidates, signatures
from sft_jax.data.similarity.shingles import Shingles, character_shingles, jaccard
from sft_jax.data.views import PromptTemplate, View

SIMILARITY = 0.8  # Jaccard, as in Lee et al. 2022 ("Deduplicating training data makes language models better")
_SLACK = 0.15  # the estimate of a signature of 120 bins is off by more in one of 10,000 pairs
_CHUNK = 4_000_000  # characters hashed at once
_SAMPLE = 1_000  # texts from which the pieces of a common template are read
_TEMPLATE_SHARE = 0.5  # pieces in more texts than this belong to a template
_TEMPLATE_TEXTS = 100  # fewer texts are not searched for a template


def similar_groups(texts: Sequence[str], similarity: float = SIMILARITY) -> list[list[int]]:
    """Groups of texts in which each is alike to at least one other.

    Alike are texts whose sets of 5-character pieces have that Jaccard similarity at least; pieces that more than half
    of the texts have (a prompt template) are left out. What is found is proven; of pairs of exactly that similarity
    a few in a hundred are not found. Time and memory are linear in the number of characters.

    Args:
        texts: distinct or not.
        similarity: between 0.7 and 1; below, too many pairs would not be found.

    Returns:
        Groups of indices, each in order, by their first.
    """
    if not 0.7 <= similarity <= 1:
        raise ValueError(f"similarity must lie between 0.7 and 1, got {similarity}.")
    if len(texts) < 2:
        return []
    template = _template_pieces(texts)
    found = np.concatenate([signatures(_without(pieces, template)) for pieces in _in_chunks(texts)])
    parents = list(range(len(texts)))
    for first, second in candidates(found, similarity - _SLACK):
        roots = _root(parents, first), _root(parents, second)
        if roots[0] != roots[1] and _alike(texts[first], texts[second], template, similarity):
            parents[max(roots)] = min(roots)
    groups: dict[int, list[int]] = {}
    for number in range(len(texts)):
        groups.setdefault(_root(parents, number), []).append(number)
    return [group for group in groups.values() if len(group) > 1]


def texts_compared(views: Sequence[View], template: PromptTemplate) -> list[str]:
    """The text of each view that is compared: prompt and answer, or the prompt alone where answers are labels."""
    compared = template.text if labels_of(views) is None else template.main
    return [compared(view) for view in views]


def _alike(first: str, second: str, template: np.ndarray, similarity: float) -> bool:
    pieces = _without(character_shingles([first, second]), template)
    return jaccard(pieces.of(0), pieces.of(1)) >= similarity


def _root(parents: list[int], number: int) -> int:
    while parents[number] != number:
        parents[number] = parents[parents[number]]
        number = parents[number]
    return number


def _in_chunks(texts: Sequence[str]) -> Iterator[Shingles]:
    chunk, characters = [], 0
    for text in texts:
        chunk.append(text)
        characters += len(text)
        if characters > _CHUNK:
            yield character_shingles(chunk)
            chunk, characters = [], 0
    if chunk:
        yield character_shingles(chunk)


def _template_pieces(texts: Sequence[str]) -> np.ndarray:
    """Hashes of the pieces that most of the texts have, sorted."""
    if len(texts) < _TEMPLATE_TEXTS:
        return np.zeros(0, np.uint64)
    sample = texts[:: -(-len(texts) // _SAMPLE)]
    pieces = np.concatenate(
        [np.unique(shingles.of(i)) for shingles in _in_chunks(sample) for i in range(len(shingles))]
    )
    hashes, counts = np.unique(pieces, return_counts=True)
    return hashes[counts > _TEMPLATE_SHARE * len(sample)]


def _without(pieces: Shingles, template: np.ndarray) -> Shingles:
    """The pieces that are not the template's; a text of nothing else keeps all of them."""
    if not len(template):
        return pieces
    at = np.minimum(template.searchsorted(pieces.hashes), len(template) - 1)
    own = template[at] != pieces.hashes
    texts = pieces.texts
    own |= ~np.isin(texts, np.unique(texts[own]))
    return pieces.where(own)
