"""Offsets by bytes: the characters of each token of a byte-level tokenizer, computed from the bytes of the tokens.

Used by special_tokens.py. Tokens of byte-level BPE are strings of bytes, and those of a text, one after the other, are
the text itself unless a normalizer changed it. That is cheap to check, and cheaper than asking the tokenizer for the
offsets of every token.
"""

import functools
from collections.abc import Sequence

import numpy as np
import tokenizers

from sft_jax.data.rendering.rendered import Offsets


class TokenBytes:
    """The bytes of every token of a byte-level tokenizer."""

    def __init__(self, bytes_by_id: Sequence[bytes]):
        self._bytes = bytes_by_id
        self._sizes = np.array([len(one) for one in bytes_by_id], np.int32)

    @classmethod
    def of(cls, tokenizer: tokenizers.Tokenizer) -> "TokenBytes | None":
        """Those of a tokenizer; None if its tokens are not spelt in the alphabet of bytes."""
        added = {number: token.content for number, token in tokenizer.get_added_tokens_decoder().items()}
        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
        spelt = {number: token for token, number in vocabulary.items() if number not in added}
        joined = "".join(spelt.values())
        byte_of = _alphabet()
        if not joined or not set(joined) <= set(map(chr, byte_of)):
            return None
        raw = joined.translate(byte_of).encode("latin-1")
        bytes_by_id = [b""] * (max([*spelt, *added]) + 1)
        start = 0
        for number, token in spelt.items():
            bytes_by_id[number] = raw[start : start + len(token)]
            start += len(token)
        for number, content in added.items():
            bytes_by_id[number] = content.encode()
        return cls(bytes_by_id)

    def offsets(self, ids: Sequence[int], text: str) -> Offsets | None:
        """The characters [start, end) each token stands for, as the tokenizer would say.

        A token that holds some bytes of a character stands for that character.

        Returns:
            None if the bytes of the tokens are not those of the text.
        """
        raw = text.encode()
        if b"".join(map(self._bytes.__getitem__, ids)) != raw:
            return None
        offsets = np.empty((len(ids), 2), np.int32)
        sizes = self._sizes[ids]
        ends = sizes.cumsum(dtype=np.int32)
        offsets[:, 0], offsets[:, 1] = ends - sizes, ends
        if len(raw) != len(text):
            begins = (np.frombuffer(raw, np.uint8) & 0xC0) != 0x80  # all but the continuation bytes of UTF-8
            characters = begins.cumsum(dtype=np.int32) - 1
            offsets[:, 0] = characters[offsets[:, 0]]
            offsets[:, 1] = characters[offsets[:, 1] - 1] + 1
        return offsets


def token_bytes(token: str) -> bytes:
    """The bytes that a token of a byte-level vocabulary spells; what is no letter of its alphabet as UTF-8."""
    byte_of = _alphabet()
    return b"".join(bytes([byte_of[ord(c)]]) if ord(c) in byte_of else c.encode() for c in token)


@functools.cache
def _alphabet() -> dict[int, int]:
    """The letter of each byte, from letter to byte: printable Latin-1 as itself, the other bytes from U+0100 on.

    From GPT-2's encoder (Radford et al., 2019).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: byte for byte in printable} | {0x100 + number: byte for number, byte in enumerate(others)}
