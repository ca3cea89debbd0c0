"""Checks that a model fits its data: no example longer than its positions, no token without an embedding."""

from sft_jax.data.tokenized import TokenizedExamples
from sft_jax.models import positions
from sft_jax.models.config import DecoderConfig


def check_sizes(decoder: DecoderConfig, *data: TokenizedExamples | None, remedy: str = "") -> None:
    """Checks that the model has a position and an embedding for every token of the data.

    Args:
        decoder: the model's.
        data: tokenized examples; None is skipped.
        remedy: how an example that is too long is left out; by default as a config does it.

    Raises:
        ValueError: an example is longer than the positions the model knows, or has a token without an embedding.
    """
    for examples in data:
        if examples is None:
            continue
        longest = int(examples.lengths.argmax())
        if examples.lengths[longest] > decoder.max_positions:
            remedy = remedy or f"--config.data.sequence_length={decoder.max_positions} leaves such examples out"
            raise ValueError(
                f"{examples.ids[longest]} has {examples.lengths[longest]} tokens; the model knows "
                f"{decoder.max_positions} positions. {remedy}{positions.advice(decoder)}."
            )
        if examples.tokens.max() >= decoder.vocab_size:
            index = int(examples.offsets.searchsorted(examples.tokens.argmax(), side="right")) - 1
            raise ValueError(
                f"{examples.ids[index]} has token {examples.tokens.max()}; the model has embeddings of "
                f"{decoder.vocab_size} tokens. Tokenizer and weights do not belong together."
            )
