"""Search by words: Okapi BM25 (Robertson and Zaragoza 2009), as Lucene computes it, by the library `bm25s`.

One of the two rankings of index.py. Words are those that the checks compare: NFKC, without case, and each character of
a language written without spaces. There are no stop words, so that no language is assumed: a word of nearly all chunks
hardly counts.
"""

import dataclasses
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float32

from sft_jax.data.similarity.shingles import words

K1, B = 1.5, 0.75


@dataclasses.dataclass(frozen=True)
class WordIndex:
    """The words of some texts.

    Attributes:
        scorer: of `bm25s`: what each word adds to the score of each text.
    """

    scorer: Any

    @classmethod
    def of(cls, texts: list[str]) -> "WordIndex":
        """The index of texts.

        Raises:
            ValueError: there is no word in any of them.
        """
        numbers: dict[str, int] = {}
        tokens = [[numbers.setdefault(word, len(numbers)) for word in words(text)] for text in texts]
        if not numbers:
            raise ValueError(f"none of {len(texts)} chunks has a word, a letter or a digit, that could be searched for")
        scorer = _bm25s().BM25(k1=K1, b=B, method="lucene", backend="numpy")
        scorer.index((tokens, numbers), create_empty_token=False, show_progress=False)
        return cls(scorer)

    @classmethod
    def load(cls, directory: Path) -> "WordIndex":
        """Reads what `save` wrote."""
        return cls(_bm25s().BM25.load(directory, load_corpus=False))

    def save(self, directory: Path) -> None:
        """Writes it into a directory."""
        self.scorer.save(directory, show_progress=False)

    def scores(self, query: str) -> Float32[np.ndarray, "texts"]:
        """The score of each text; 0 where it has no word of the query."""
        numbers = self.scorer.get_tokens_ids(words(query))
        return self.scorer.get_scores_from_ids(numbers).astype(np.float32)


def _bm25s() -> ModuleType:
    """The library. Where it finds JAX it runs a program when it is imported, and so would choose the devices."""
    if "bm25s" in sys.modules:
        return sys.modules["bm25s"]
    before = sys.modules.get("jax.lax")
    sys.modules["jax.lax"] = None  # not found
    try:
        import bm25s
    finally:
        if before is None:
            del sys.modules["jax.lax"]
        else:
            sys.modules["jax.lax"] = before
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it announces each step
    return bm25s
