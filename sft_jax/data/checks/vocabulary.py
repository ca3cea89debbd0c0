"""Rows that the vocabulary of the model handles badly: many tokens for little text, or none that means it."""

import json

import numpy as np
from jaxtyping import Int64
from transformers import PreTrainedTokenizerBase

from sft_jax.data.checks.findings import Observation, counted, observed
from sft_jax.data.checks.subject import Subject

_TIMES_MIDDLE = 2.0  # so many times the tokens a byte of the middle row is far off
_BAD_MIDDLE = 0.5  # tokens a byte; English has about 0.23, a token for each byte 1
_FEWEST_BYTES = 40  # of text in a row that is judged: words and not a name


def vocabulary(subject: Subject) -> list[Observation]:
    """Tokens a byte, rows far above the middle one, and rows with the unknown token."""
    if subject.tokenizer is None or not len(subject.rows):
        return []
    rows = subject.rows
    sizes = token_bytes(subject.tokenizer)
    known = np.minimum(rows.tokens, len(sizes) - 1)
    text_bytes = _sums(sizes[known], rows.offsets)
    text_tokens = _sums((sizes[known] > 0).astype(np.int64), rows.offsets)
    judged = text_bytes >= _FEWEST_BYTES
    found = _unknown(subject)
    if judged.any():
        rates = np.where(judged, text_tokens / np.maximum(text_bytes, 1), 0.0)
        found += _rates(subject, rates, float(np.median(rates[judged])))
    return found


def _rates(subject: Subject, rates: np.ndarray, middle: float) -> list[Observation]:
    bad = np.flatnonzero(rates > _TIMES_MIDDLE * middle)
    found = [Observation(f"{middle:.2f} tokens a byte in the middle row", 0, 0.0, numbers={"median": middle})]
    found += observed(
        f"{counted(len(bad), 'row needs', 'rows need')} over {_TIMES_MIDDLE:g} times the middle row's tokens a byte",
        bad[np.argsort(-rates[bad], kind="stable")].tolist(),
        len(subject.rows),
        lambda row: (subject.rows.ids[row], f"{rates[row]:.2f} tokens a byte: {_text(subject, row)}"),
        "Another script, or no language (keys, base64): the model hardly knows it.",
    )
    if middle > _BAD_MIDDLE:
        title = f"The vocabulary of the model does not suit the data: {middle:.2f} tokens a byte in the middle row"
        advice = "Choose a base model whose tokenizer knows the script: text costs several times the tokens here."
        found.append(Observation(title, len(subject.rows), 1.0, advice=advice))
    return found


def _unknown(subject: Subject) -> list[Observation]:
    rows, unknown = subject.rows, _unknown_id(subject.tokenizer)
    if unknown is None:
        return []
    counts = _sums((rows.tokens == unknown).astype(np.int64), rows.offsets)
    bad = np.flatnonzero(counts).tolist()
    return observed(
        f"{counted(len(bad), 'row holds', 'rows hold')} text that the vocabulary does not know (the unknown token)",
        bad,
        len(rows),
        lambda row: (rows.ids[row], f"{counts[row]} unknown: {_text(subject, row)}"),
        "What it stood for is lost: remove such characters or choose another base model.",
    )


def _unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token for text outside the vocabulary; None where the tokenizer has none, or uses it as another special."""
    others = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
    return None if tokenizer.unk_token_id in others else tokenizer.unk_token_id


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> Int64[np.ndarray, "vocabulary"]:
    """Bytes of text that each token stands for; 0 for special and added tokens.

    A token of a byte-level vocabulary is spelt with one character a byte; elsewhere "▁" is a space, "<0xE2>" a byte.
    """
    byte_level = '"ByteLevel"' in json.dumps(json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder"))
    sizes = np.zeros(len(tokenizer), np.int64)
    added = tokenizer.get_added_vocab()
    for token, number in tokenizer.get_vocab().items():
        if token in added or number >= len(sizes):
            continue
        if byte_level:
            sizes[number] = len(token)
        else:
            is_byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
            sizes[number] = 1 if is_byte else len(token.replace("▁", " ").removeprefix("##").encode())
    return sizes


def _sums(values: Int64[np.ndarray, "total"], offsets: Int64[np.ndarray, "rows_and_one"]) -> Int64[np.ndarray, "rows"]:
    running = np.concatenate([np.zeros(1, np.int64), np.cumsum(values)])
    return np.diff(running[offsets])


def _text(subject: Subject, row: int) -> str:
    return repr(subject.tokenizer.decode(subject.rows.row(row)[0].tolist(), skip_special_tokens=True)[-150:])
