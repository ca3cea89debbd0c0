"""Whether a model has a place for every token of the data."""

from sft_jax.data.tokenized import TokenizedExamples
from sft_jax.models import positions
from sft_jax.models.config import DecoderConfig


def check_sizes(decoder: DecoderConfig, *data: TokenizedExamples | None, remedy: str = "") -> None:
    """Checks that the model has a place for every token of the data.

    Args:
        decoder: the model's.
        data: tokenized rows.
        remedy: how a row that is too long is left out; by default as a config does it.

    Raises:
        ValueError: a row is longer than the positions the model knows, or has a token that its embedding lacks.
    """
    for rows in data:
        if rows is None:
            continue
        longest = int(rows.lengths.argmax())
        if rows.lengths[longest] > decoder.max_positions:
            remedy = remedy or f"--config.data.sequence_length={decoder.max_positions} leaves such rows out"
            raise ValueError(
                f"{rows.ids[longest]} has {rows.lengths[longest]} tokens; the model knows {decoder.max_positions} "
                f"positions. {remedy}{positions.advice(decoder)}."
            )
        if rows.tokens.max() >= decoder.vocab_size:
            row = int(rows.offsets.searchsorted(rows.tokens.argmax(), side="right")) - 1
            raise ValueError(
                f"{rows.ids[row]} has token {rows.tokens.max()}; the model's embedding has {decoder.vocab_size} rows. "
                "Tokenizer and weights do not belong together."
            )
