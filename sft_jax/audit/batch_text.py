"""A batch as text: what the first step is trained on, token by token, with the trained parts marked."""

import numpy as np

from sft_jax.audit.report import bracketed, indented, token_pieces
from sft_jax.data.batches import Batch, trained_tokens
from sft_jax.sources.transformers_types import PreTrainedTokenizerBase

_ROWS_SHOWN = 2


def batch_markdown(batch: Batch, tokenizer: PreTrainedTokenizerBase) -> str:
    """The first rows of a batch as Markdown; trained parts stand in ⟦ ⟧, examples of a row are parted by rules.

    Args:
        batch: from `train_batches`.
        tokenizer: turns ids back into text, special tokens included.
    """
    trained = trained_tokens(batch) > 0
    parts = []
    for row in range(min(_ROWS_SHOWN, len(batch["tokens"]))):
        parts.append(f"#### row {row}")
        segments = batch["segment_ids"][row]
        for segment in range(1, int(segments.max(initial=0)) + 1):
            inside = segments == segment
            parts.append(_marked(batch["tokens"][row][inside], trained[row][inside], tokenizer))
            parts.append("---")
    return "\n\n".join(parts)


def _marked(tokens: np.ndarray, trained: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> str:
    return "\n".join(indented(bracketed(token_pieces(tokens, trained, tokenizer))))
