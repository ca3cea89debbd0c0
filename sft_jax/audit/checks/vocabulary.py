"""Rows that the vocabulary of the model handles badly: many tokens for little text, or none that means it."""

import json
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from sft_jax.audit.checked_data import CheckedData
from sft_jax.audit.findings import Observation, counted, observed
from sft_jax.data.rendering.byte_offsets import token_bytes
from sft_jax.data.rendering.special_tokens import content_text
from sft_jax.sources.transformers_types import PreTrainedTokenizerBase

_TIMES_MIDDLE = 2.0  # so many times the tokens a byte of the middle row is far off
_WHOLE_CHARACTERS = 1.0  # tokens a character: above, the vocabulary spells characters by their bytes
_FEWEST_BYTES = 40  # of text in a row that is judged: words and not a name


def vocabulary(data: CheckedData) -> list[Observation]:
    """Tokens a byte, rows far above the middle one, characters spelt by their bytes, rows with the unknown token."""
    if data.tokenizer is None or not len(data.rows):
        return []
    rows = data.rows
    texts = token_texts(data.tokenizer)
    known = np.minimum(rows.tokens, len(texts.sizes) - 1)
    text_bytes = _sums(texts.sizes[known], rows.offsets)
    text_characters = _sums(texts.characters[known], rows.offsets)
    text_tokens = _sums((texts.sizes[known] > 0).astype(np.int64), rows.offsets)
    judged = text_bytes >= _FEWEST_BYTES
    found = _unknown(data)
    if judged.any():
        rates = np.where(judged, text_tokens / np.maximum(text_bytes, 1), 0.0)
        found += _rates(data, rates, float(np.median(rates[judged])))
        spelt = text_tokens[judged] / np.maximum(text_characters[judged], 1)
        found += _spelt_by_bytes(data, float(np.median(spelt)))
    return found


def _rates(data: CheckedData, rates: np.ndarray, middle: float) -> list[Observation]:
    bad = np.flatnonzero(rates > _TIMES_MIDDLE * middle)
    found = [Observation(f"{middle:.2f} tokens a byte in the middle row", 0, 0.0, numbers={"median": middle})]
    return found + observed(
        f"{counted(len(bad), 'row needs', 'rows need')} over {_TIMES_MIDDLE:g} times the middle row's tokens a byte",
        bad[np.argsort(-rates[bad], kind="stable")].tolist(),
        len(data.rows),
        lambda row: (data.rows.ids[row], f"{rates[row]:.2f} tokens a byte: {_text(data, row)}"),
        "Look whether they belong there: keys, base64 and other scripts are such rows.",
    )


def _spelt_by_bytes(data: CheckedData, middle: float) -> list[Observation]:
    """Data of which more than half the rows have more tokens than characters; letters, digits and signs cannot."""
    if middle <= _WHOLE_CHARACTERS:
        return []
    title = f"The vocabulary of the model spells characters by their bytes: {middle:.2f} tokens a character"
    numbers = {"tokens_a_character": middle}
    return [Observation(f"{title} in the middle row", len(data.rows), 1.0, numbers=numbers)]


def _unknown(data: CheckedData) -> list[Observation]:
    rows, unknown = data.rows, _unknown_id(data.tokenizer)
    if unknown is None:
        return []
    counts = _sums((rows.tokens == unknown).astype(np.int64), rows.offsets)
    bad = np.flatnonzero(counts).tolist()
    return observed(
        f"{counted(len(bad), 'row holds', 'rows hold')} text that the vocabulary does not know (the unknown token)",
        bad,
        len(rows),
        lambda row: (rows.ids[row], f"{counts[row]} unknown: {_text(data, row)}"),
        "What it stood for is lost: remove such characters or choose another base model.",
    )


def _unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token for text outside the vocabulary; None where the tokenizer has none, or uses it as another special."""
    others = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
    return None if tokenizer.unk_token_id in others else tokenizer.unk_token_id


class TokenTexts(NamedTuple):
    """What each token stands for; 0 for special and added tokens.

    Attributes:
        sizes: bytes of text.
        characters: of those, the ones with which a character of UTF-8 begins.
    """

    sizes: Int64[np.ndarray, "vocabulary"]
    characters: Int64[np.ndarray, "vocabulary"]


def token_texts(tokenizer: PreTrainedTokenizerBase) -> TokenTexts:
    """How much text each token of the vocabulary stands for.

    A token of a byte-level vocabulary is spelt with one letter a byte; elsewhere "▁" is a space, "<0xE2>" a byte.
    """
    byte_level = '"ByteLevel"' in json.dumps(json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder"))
    texts = TokenTexts(np.zeros(len(tokenizer), np.int64), np.zeros(len(tokenizer), np.int64))
    added = tokenizer.get_added_vocab()
    for token, number in tokenizer.get_vocab().items():
        if token not in added and number < len(tokenizer):
            text = token_bytes(token) if byte_level else _sentencepiece_bytes(token)
            texts.sizes[number] = len(text)
            texts.characters[number] = sum(byte & 0xC0 != 0x80 for byte in text)  # no continuation byte of UTF-8
    return texts


def _sentencepiece_bytes(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return token.replace("▁", " ").removeprefix("##").encode()


def _sums(values: Int64[np.ndarray, "total"], offsets: Int64[np.ndarray, "rows_and_one"]) -> Int64[np.ndarray, "rows"]:
    running = np.concatenate([np.zeros(1, np.int64), np.cumsum(values)])
    return np.diff(running[offsets])


def _text(data: CheckedData, row: int) -> str:
    return repr(content_text(data.tokenizer, data.rows.example(row)[0].tolist())[-150:])
