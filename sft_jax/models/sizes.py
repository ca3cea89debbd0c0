"""Checks that a model fits its data: no example longer than its positions, no token without an embedding."""

from sft_jax.data.tokenized import TokenizedExamples
from sft_jax.models import positions, rope
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
        lengths = examples.text_lengths.max(axis=0)
        longest = int(lengths.argmax())
        if lengths[longest] > decoder.max_positions:
            remedy = remedy or f"--config.data.sequence_length={decoder.max_positions} leaves such examples out"
            raise ValueError(
                f"{examples.ids[longest]} has {lengths[longest]} tokens; the model knows "
                f"{decoder.max_positions} positions. {remedy}{positions.advice(decoder)}."
            )
        if examples.tokens.max() >= decoder.vocab_size:
            index = int(examples.offsets.searchsorted(examples.tokens.argmax(), side="right")) - 1
            raise ValueError(
                f"{examples.ids[index]} has token {examples.tokens.max()}; the model has embeddings of "
                f"{decoder.vocab_size} tokens. Tokenizer and weights do not belong together."
            )
        _check_one_rotation(decoder, examples)


def _check_one_rotation(decoder: DecoderConfig, examples: TokenizedExamples) -> None:
    """Checks that the branches of an example, which share their beginning, rotate it alike (LongRoPE)."""
    short = rope.short_positions(decoder)
    if short is None or examples.branches is None:
        return
    lengths = examples.text_lengths
    both = (lengths > short).any(axis=0) & ((lengths > 0) & (lengths <= short)).any(axis=0)
    if both.any():
        row = int(both.argmax())
        texts = ", ".join(str(length) for length in lengths[:, row] if length)
        raise ValueError(
            f"{examples.ids[row]}: its answers make texts of {texts} tokens, and this model "
            f"rotates texts of more than {short} otherwise (LongRoPE), so that they cannot share their prompt. "
            "Leave such rows out"
        )
