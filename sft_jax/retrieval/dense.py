"""Search by meaning: texts as vectors, compared by their cosine.

One of the two rankings of index.py. What makes the vectors is an `Embedder`: the one here, or any other, of the hidden
states of a model for example.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath
from jaxtyping import Float32

from sft_jax.sources.fingerprint import fingerprint_files

Vectors = Float32[np.ndarray, "texts dim"]

_INSTALL = "pip install -r requirements-dense.txt"
_MODEL, _DIM = "l2_supercat", 256  # the one model in the package
_FILES = (f"weights/{_MODEL}_{_DIM}.safetensors", f"tokenizers/{_MODEL}_tokenizer_config.json")
_TOLERANCE = 1e-3  # of a length of 1


class Embedder(Protocol):
    """Makes vectors of texts.

    Attributes:
        name: a fingerprint: two embedders of one name make the same vectors of the same texts.
    """

    name: str

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """The vectors of texts that are not blank, each of length 1."""
        ...


class WordLlamaEmbedder:
    """The mean of static token embeddings, by the package `wordllama`: 256 numbers a text, thousands of texts a second.

    It is no dependency of the core install. The package is under the MIT licence, but its README says that its weights
    were trained from the token embeddings of LLaMA 2 70B, Phi 3 medium and other models: for those taken from Llama
    that means Meta's community licence. They lie in the package; nothing is downloaded.
    """

    def __init__(self):
        """Finds the weights, and does not load them yet.

        Raises:
            ValueError: the package is not installed, or its files are not there.
        """
        found = importlib.util.find_spec("wordllama")
        if found is None or not found.submodule_search_locations:
            raise ValueError(f"search by vectors needs the package wordllama, which is not installed: {_INSTALL}")
        self._folder = epath.Path(found.submodule_search_locations[0])
        files = [self._folder / file for file in _FILES]
        missing = [file for file in files if not file.exists()]
        if missing:
            raise ValueError(f"the package wordllama lacks {missing[0]}; install the tested release: {_INSTALL}")
        self.name = f"wordllama {importlib.metadata.version('wordllama')} {fingerprint_files(files)[:32]}"

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """The vectors of texts that are not blank, each of length 1."""
        vectors = self._model.embed(list(texts), norm=False)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    @functools.cached_property
    def _model(self) -> Any:
        with _logging_as_it_is():
            from wordllama import WordLlama

        # Without `cache_dir` this release does not look for the tokenizer where it has it.
        return WordLlama.load(_MODEL, dim=_DIM, cache_dir=self._folder, disable_download=True)


def embedder_of(method: str) -> Embedder | None:
    """The embedder of a method of search; None for one by words alone.

    Raises:
        ValueError: see `WordLlamaEmbedder`.
    """
    return None if method == "bm25" else WordLlamaEmbedder()


def embedded(embedder: Embedder, texts: Sequence[str]) -> Vectors:
    """The vectors of texts, checked.

    Raises:
        ValueError: they are not what an embedder gives; names it.
    """
    vectors = embedder(texts)
    is_array = isinstance(vectors, np.ndarray) and vectors.dtype == np.float32
    if not is_array or vectors.ndim != 2 or len(vectors) != len(texts):
        got = f"{vectors.dtype} {vectors.shape}" if isinstance(vectors, np.ndarray) else type(vectors).__name__
        raise ValueError(f"embedder {embedder.name}: expected float32 [{len(texts)}, dim], got {got}")
    lengths = np.linalg.norm(vectors, axis=1)
    bad = np.flatnonzero(~(np.abs(lengths - 1) <= _TOLERANCE))  # NaN too
    if len(bad):
        text = texts[bad[0]]
        raise ValueError(
            f"embedder {embedder.name}: the vector of {text[:60]!r} has length {lengths[bad[0]]:.4g}; expected 1"
        )
    return vectors


@contextlib.contextmanager
def _logging_as_it_is() -> Iterator[None]:
    """Undoes that importing the package sets up the logging of the whole process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
