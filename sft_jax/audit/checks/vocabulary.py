"""Examples that the vocabulary of the model handles badly: many tokens for little text, or the unknown token."""

import json
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from sft_jax.audit.checked_data import CheckedData
from sft_jax.audit.findings import Observation, counted, observed
from sft_jax.data.rendering.byte_offsets import token_bytes
from sft_jax.data.rendering.special_tokens import content_text
from sft_jax.sources.transformers_types import PreTrainedTokenizerBase

_TIMES_MIDDLE = 2.0  # so many times the median of tokens a byte is far off
_WHOLE_CHARACTERS = 1.0  # tokens a character: above, the vocabulary spells characters by their bytes
_FEWEST_BYTES = 40  # of text in an example that is judged: words and not a name


def vocabulary(data: CheckedData) -> list[Observation]:
    """Tokens a byte and examples far above the middle; characters spelt by their bytes; the unknown token."""
    if data.tokenizer is None or not len(data.examples):
        return []
    examples = data.examples
    texts = token_texts(data.tokenizer)
    known = np.minimum(examples.tokens, len(texts.sizes) - 1)
    text_bytes = _sums(texts.sizes[known], examples.offsets)
    text_characters = _sums(texts.characters[known], examples.offsets)
    text_tokens = _sums((texts.sizes[known] > 0).astype(np.int64), examples.offsets)
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
    found = [Observation(f"{middle:.2f} tokens a byte in the middle example", 0, 0.0, numbers={"median": middle})]
    return found + observed(
        f"{counted(len(bad), 'example needs', 'examples need')} over {_TIMES_MIDDLE:g} times the middle one's tokens a "
        "byte",
        bad[np.argsort(-rates[bad], kind="stable")].tolist(),
        len(data.examples),
        lambda number: (data.examples.ids[number], f"{rates[number]:.2f} tokens a byte: {_text(data, number)}"),
        "Look whether they belong there: keys, base64 and other scripts are like that.",
    )


def _spelt_by_bytes(data: CheckedData, middle: float) -> list[Observation]:
    """Data of which more than half the examples have more tokens than characters; letters, digits and signs cannot."""
    if middle <= _WHOLE_CHARACTERS:
        return []
    title = f"The vocabulary of the model spells characters by their bytes: {middle:.2f} tokens a character"
    numbers = {"tokens_a_character": middle}
    return [Observation(f"{title} in the middle example", len(data.examples), 1.0, numbers=numbers)]


def _unknown(data: CheckedData) -> list[Observation]:
    examples, unknown = data.examples, _unknown_id(data.tokenizer)
    if unknown is None:
        return []
    counts = _sums((examples.tokens == unknown).astype(np.int64), examples.offsets)
    bad = np.flatnonzero(counts).tolist()
    return observed(
        f"{counted(len(bad), 'example holds', 'examples hold')} text that the vocabulary does not know (the unknown "
        "token)",
        bad,
        len(examples),
        lambda number: (examples.ids[number], f"{counts[number]} unknown: {_text(data, number)}"),
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


def _sums(
    values: Int64[np.ndarray, "total"], offsets: Int64[np.ndarray, "examples_and_one"]
) -> Int64[np.ndarray, "examples"]:
    running = np.concatenate([np.zeros(1, np.int64), np.cumsum(values)])
    return np.diff(running[offsets])


def _text(data: CheckedData, number: int) -> str:
    return repr(content_text(data.tokenizer, data.examples.example(number)[0].tolist())[-150:])
