"""Retrieval: from the documents of a corpus to the passages that answer a question, and into its prompt.

Stands above data/, and knows neither models nor JAX. `read_corpus` (corpus.py) makes documents of files, `chunks_of`
(chunks.py) cuts them, `open_index` (index.py, saved.py) makes an index of the chunks by words (bm25.py), by vectors
(dense.py) or by both (fusion.py); `Index.search` finds passages, and `with_passages` (prompts.py) puts them into a
conversation. quality.py says how good the search is, for questions of which it is known where their answer stands.

    documents, report = read_corpus("docs/")
    index = open_index(directory, chunks_of(documents, 150, 30), "hybrid", embedder_of("hybrid"))
    (passages,) = index.search(["When is the library open?"], k=3)
    conversation = with_passages(conversation, passages, TEMPLATE, PASSAGE_TEMPLATE)
"""

from sft_jax.retrieval.chunks import Chunk, chunks_of
from sft_jax.retrieval.corpus import CorpusReport, Document, read_corpus
from sft_jax.retrieval.dense import Embedder, embedder_of
from sft_jax.retrieval.index import METHODS, Index, Passage, index_name
from sft_jax.retrieval.prompts import PASSAGE_TEMPLATE, TEMPLATE, check_templates, query_of, with_passages
from sft_jax.retrieval.saved import open_index

__all__ = [
    "METHODS",
    "PASSAGE_TEMPLATE",
    "TEMPLATE",
    "Chunk",
    "CorpusReport",
    "Document",
    "Embedder",
    "Index",
    "Passage",
    "check_templates",
    "chunks_of",
    "embedder_of",
    "index_name",
    "open_index",
    "query_of",
    "read_corpus",
    "with_passages",
]
