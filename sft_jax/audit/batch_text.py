"""A batch as Markdown: the text of its first sequences, with the trained parts marked."""

import numpy as np

from sft_jax.audit.report import bracketed, indented, token_pieces
from sft_jax.data.batches import Batch, trained_tokens
from sft_jax.sources.transformers_types import PreTrainedTokenizerBase

_SEQUENCES_SHOWN = 2


def batch_markdown(batch: Batch, tokenizer: PreTrainedTokenizerBase) -> str:
    """The first sequences of a batch as Markdown; trained parts stand in ⟦ ⟧, and a rule follows each example.

    Args:
        batch: from `train_batches`.
        tokenizer: decodes ids into text, special tokens included.
    """
    trained = trained_tokens(batch) > 0
    parts = []
    for sequence in range(min(_SEQUENCES_SHOWN, len(batch["tokens"]))):
        parts.append(f"#### sequence {sequence}")
        segments = batch["segment_ids"][sequence]
        for segment in range(1, int(segments.max(initial=0)) + 1):
            inside = segments == segment
            parts.append(_marked(batch["tokens"][sequence][inside], trained[sequence][inside], tokenizer))
            parts.append("---")
    return "\n\n".join(parts)


def _marked(tokens: np.ndarray, trained: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> str:
    return "\n".join(indented(bracketed(token_pieces(tokens, trained, tokenizer))))
