"""Reads other people's checkpoints and tokenizers: Hugging Face directories, GGUF files, the hub.

Everything here reads files and imports nothing of models, training or JAX.
`open_checkpoint` gives a config in the form of a Hugging Face `config.json` and lazily loaded NumPy tensors under
Hugging Face names, whatever the file format; `load_tokenizer` gives the tokenizer with its chat template from the
same source. A source that cannot be read raises `SourceError`, which names the file and says what to do.
"""

from sft_jax.sources.checkpoint import PretrainedCheckpoint, open_checkpoint
from sft_jax.sources.tensors import SourceError, TensorEntry
from sft_jax.sources.tokenizer import load_tokenizer

__all__ = ["PretrainedCheckpoint", "SourceError", "TensorEntry", "load_tokenizer", "open_checkpoint"]
