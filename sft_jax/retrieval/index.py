"""The index of a corpus: what finds passages for questions, by words, by vectors, or by both.

The step between chunks.py and prompts.py; saved.py keeps it on a disk.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from sft_jax.data.tokenized.cache_key import code_digest
from sft_jax.retrieval.bm25 import WordIndex
from sft_jax.retrieval.chunks import Chunk
from sft_jax.retrieval.dense import Embedder, Vectors, embedded
from sft_jax.retrieval.fusion import reciprocal_rank_fusion

METHODS = ("bm25", "dense", "hybrid")

_FUSED = 100  # of each ranking, so many at least are fused
_AT_ONCE = 64  # texts that are embedded and compared together
_DECIMALS = 6  # of cosines: what differs less is equal, whatever is computed together


@dataclasses.dataclass(frozen=True)
class Passage:
    """A chunk that was found.

    Attributes:
        chunk_id: of the chunk.
        document_id: of its document.
        text: of the chunk.
        score: BM25, a cosine, or the sum of reciprocal ranks: to be compared among the passages of a question only.
        rank: from 1.
    """

    chunk_id: str
    document_id: str
    text: str
    score: float
    rank: int


@dataclasses.dataclass(frozen=True)
class Index:
    """Chunks, and what finds them.

    Attributes:
        name: a hash of all that the passages of a question depend on.
        chunks: in the order of the corpus.
        by_words: for the methods bm25 and hybrid.
        vectors: of the chunks, for the methods dense and hybrid.
        embedder: that made them.
    """

    name: str
    chunks: tuple[Chunk, ...]
    by_words: WordIndex | None
    vectors: Vectors | None
    embedder: Embedder | None

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """The passages of each query, the best first.

        Where scores are equal, what stands earlier in the corpus comes first. By words alone a query finds only chunks
        that share a word with it, perhaps none. A blank query finds nothing.

        Args:
            queries: questions.
            k: passages of each, at most.

        Raises:
            ValueError: k is not above 0.
        """
        if k < 1:
            raise ValueError(f"search for {k} passages: expected at least 1")
        return [
            passages
            for start in range(0, len(queries), _AT_ONCE)
            for passages in self._search(queries[start : start + _AT_ONCE], k)
        ]

    def _search(self, queries: Sequence[str], k: int) -> Iterator[list[Passage]]:
        asked = [query for query in queries if query.strip()]
        cosines = iter(self._cosines(asked) if self.vectors is not None and asked else ())
        for query in queries:
            yield self._passages(query, next(cosines, None), k) if query.strip() else []

    def _passages(self, query: str, cosines: Float[np.ndarray, "chunks"] | None, k: int) -> list[Passage]:
        if self.by_words is None:
            found = _best(cosines, k)
        elif cosines is None:
            found = _best(self.by_words.scores(query), k, above=0.0)
        else:
            most = max(k, _FUSED)
            rankings = (_best(self.by_words.scores(query), most, above=0.0), _best(cosines, most))
            found = reciprocal_rank_fusion([[number for number, _ in ranking] for ranking in rankings])[:k]
        return [self._passage(number, score, rank) for rank, (number, score) in enumerate(found, 1)]

    def _cosines(self, queries: Sequence[str]) -> Float[np.ndarray, "queries chunks"]:
        return np.round(embedded(self.embedder, queries) @ self.vectors.T, _DECIMALS)

    def _passage(self, number: int, score: float, rank: int) -> Passage:
        chunk = self.chunks[number]
        return Passage(chunk.id, chunk.document_id, chunk.text, score, rank)


def index_name(chunks: Sequence[Chunk], method: str, embedder: Embedder | None = None) -> str:
    """The name of an index: a hash of the chunks, the method, the embedder, and the code that searches.

    Raises:
        ValueError: no such method, no chunks or several of one id, or an embedder where there is none or too many.
    """
    if method not in METHODS:
        raise ValueError(f"{method!r} is no method of search; expected one of {', '.join(METHODS)}")
    if (embedder is None) != (method == "bm25"):
        raise ValueError(f"the method {method} {'needs an' if embedder is None else 'reads no'} embedder")
    if not chunks:
        raise ValueError("there are no chunks to search in")
    if len({chunk.id for chunk in chunks}) != len(chunks):
        raise ValueError("two chunks have one id; expected chunks of documents with ids of their own")
    depends_on = {
        "chunks": [chunk.id for chunk in chunks],
        "method": method,
        "embedder": embedder and embedder.name,
        "code": [code_digest(), code_digest(without=(), root=Path(__file__).parent)],
        "bm25s": importlib.metadata.version("bm25s"),
    }
    return f"{method}-{hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:32]}"


def build_index(
    chunks: Sequence[Chunk],
    method: str,
    embedder: Embedder | None = None,
    known: Mapping[str, np.ndarray] | None = None,
) -> Index:
    """An index in memory; `open_index` also keeps it.

    Args:
        chunks: with ids of their own.
        method: one of METHODS.
        embedder: for dense and hybrid.
        known: vectors of that embedder that are there already, by the ids of chunks.

    Raises:
        ValueError: see `index_name`, `WordIndex.of` and `embedded`.
    """
    name = index_name(chunks, method, embedder)
    by_words = None if method == "dense" else WordIndex.of([chunk.text for chunk in chunks])
    vectors = None if embedder is None else _vectors(chunks, embedder, known or {})
    return Index(name, tuple(chunks), by_words, vectors, embedder)


def _vectors(chunks: Sequence[Chunk], embedder: Embedder, known: Mapping[str, np.ndarray]) -> Vectors:
    new = [chunk.text for chunk in chunks if chunk.id not in known]
    pieces = (new[start : start + _AT_ONCE] for start in range(0, len(new), _AT_ONCE))
    made = (vector for piece in pieces for vector in embedded(embedder, piece))
    return np.stack([known[chunk.id] if chunk.id in known else next(made) for chunk in chunks])


def _best(scores: Float[np.ndarray, "chunks"], k: int, above: float = -np.inf) -> list[tuple[int, float]]:
    """(number, score) of the k highest scores, the highest first, the lower number first where they are equal."""
    candidates = np.flatnonzero(scores > above)
    if len(candidates) > k:
        least = np.partition(scores[candidates], -k)[-k]
        candidates = candidates[scores[candidates] >= least]
    best = candidates[np.argsort(-scores[candidates], kind="stable")][:k]
    return list(zip(best.tolist(), scores[best].tolist(), strict=True))
