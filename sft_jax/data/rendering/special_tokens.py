"""Encoding text whose special tokens count only where the chat template put them.

Used by the renderer. The text of a document may spell a special token ("<|im_end|>"); there it is text, and is encoded
as such. A tokenizer may name special tokens that count in contents too: a run's new tokens do, since its data holds
them on purpose. The names are stored in the tokenizer's own config, so that everyone who renders with it encodes alike.
"""

import dataclasses
import functools
import itertools
import re
import weakref
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tokenizers

from sft_jax.data.rendering.byte_offsets import TokenBytes
from sft_jax.data.rendering.rendered import ExampleError, Offsets, Span, TokenIds
from sft_jax.sources.transformers_types import PreTrainedTokenizerBase

_IN_CONTENTS = "special_tokens_in_contents"  # field of tokenizer_config.json, which transformers keeps as it is
# What `_hidden` found, and in which state of the tokenizer: reading all added tokens takes longer than decoding an
# example.
_HIDDEN: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, tuple[object, dict[int, str]]] = weakref.WeakKeyDictionary()


def tokens_in_contents(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The special tokens that count also where contents spell them.

    Raises:
        ValueError: the tokenizer's config names others than special tokens of its own.
    """
    named = tokenizer.init_kwargs.get(_IN_CONTENTS, ())
    known = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    if not isinstance(named, list | tuple) or not all(isinstance(text, str) and text in known for text in named):
        raise ValueError(f"tokenizer_config.json: {_IN_CONTENTS!r} is {named!r}; expected a list of special tokens.")
    return tuple(named)


def count_in_contents(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Lets special tokens of a tokenizer count also where contents spell them; it is saved with them."""
    tokenizer.init_kwargs[_IN_CONTENTS] = [*tokens_in_contents(tokenizer), *tokens]


def content_text(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int], kept: Sequence[str] = ()) -> str:
    """Ids as text, in which of special tokens only those are left that count in contents, and those of `kept`."""
    hidden = _hidden(tokenizer)
    left = [number for number in map(int, ids) if number not in hidden or hidden[number] in kept]
    return tokenizer.decode(left, skip_special_tokens=False)


def _hidden(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The special tokens that do not count in contents, by id; found once, and again when tokens were added."""
    state = (len(tokenizer), repr(tokenizer.init_kwargs.get(_IN_CONTENTS)))
    known, hidden = _HIDDEN.get(tokenizer, (None, {}))
    if known != state:
        in_contents, added = tokens_in_contents(tokenizer), tokenizer.added_tokens_decoder.items()
        hidden = {number: token.content for number, token in added if token.special}
        hidden = {number: text for number, text in hidden.items() if text not in in_contents}
        _HIDDEN[tokenizer] = state, hidden
    return hidden


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Token ids and, for each, the characters [start, end) of the text it stands for."""

    ids: TokenIds
    offsets: Offsets


class TextEncoder:
    """A fast tokenizer, and the same one made blind to special tokens in the text.

    Attributes:
        pattern: finds special tokens in a text.
        text_pattern: finds those of them that are text where contents spell them.
        beginning: the text of what the tokenizer itself begins every sequence with; empty for nothing.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        """Copies the backend; the tokenizer itself is left as it is.

        Raises:
            ValueError: the tokenizer has no `tokenizers` backend.
        """
        if not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__} gives no character offsets: a fast tokenizer is needed.")
        self._plain = _without_post_processing(tokenizer.backend_tokenizer)
        self._blind = _without_post_processing(tokenizer.backend_tokenizer)
        self._blind.encode_special_tokens = True
        added = {token.content: (number, token) for number, token in self._plain.get_added_tokens_decoder().items()}
        self._special = {text: found for text, found in added.items() if found[1].special and text}
        self._in_contents = frozenset(tokens_in_contents(tokenizer))
        self.pattern = _pattern(self._special)
        self.text_pattern = _pattern(self._special.keys() - self._in_contents)
        self.beginning = self._find_beginning(tokenizer.backend_tokenizer)
        self._swallows = any(token.lstrip or token.rstrip for _, token in self._special.values())

    def find_special(self, text: str, start: int = 0, end: int | None = None) -> list[Span]:
        """Where special tokens are spelt in text[start:end]."""
        return [m.span() for m in self.pattern.finditer(text, start, len(text) if end is None else end)]

    def _find_beginning(self, backend: tokenizers.Tokenizer) -> str:
        """The special tokens that the tokenizer's post-processor puts before every text; mostly none or one."""
        alone = backend.encode("a", add_special_tokens=False).ids
        added = backend.encode("a", add_special_tokens=True).ids
        names = {number: text for text, (number, _) in self._special.items()}
        before = added[: next((i for i in range(len(added)) if added[i : i + len(alone)] == alone), 0)]
        return "".join(names.get(number, "") for number in before)

    def token_id(self, special_text: str) -> int:
        """The id of a special token."""
        return self._special[special_text][0]

    def encode_many(
        self, texts: Sequence[str], template_parts: Sequence[Sequence[Span]]
    ) -> list[Encoded | ExampleError]:
        """Encodes texts; special tokens count only inside the given parts of each, which the template wrote.

        Those that count in contents count everywhere. Where no other is spelt outside the parts, that is what the plain
        tokenizer does, and it does it.

        Returns:
            For each text its tokens, or a ExampleError where it spells a special token and this tokenizer cannot treat
            it as text.
        """
        intended = [self._intended(text, parts) for text, parts in zip(texts, template_parts, strict=True)]
        alone = [self.find_special(text) == spans for text, spans in zip(texts, intended, strict=True)]
        plain = self._encode_plain(list(itertools.compress(texts, alone)), list(itertools.compress(intended, alone)))
        return [
            next(plain) if is_alone else self._encode_cut(text, spans)
            for text, spans, is_alone in zip(texts, intended, alone, strict=True)
        ]

    def _intended(self, text: str, parts: Sequence[Span]) -> list[Span]:
        """Where special tokens count, in order."""
        spans = [span for part in parts for span in self.find_special(text, *part)]
        if not self._in_contents:
            return spans
        others = [span for span in self.find_special(text) if text[slice(*span)] in self._in_contents]
        apart = lambda span: all(span[1] <= start or end <= span[0] for start, end in spans)
        return sorted([*spans, *filter(apart, others)])

    def _encode_plain(self, texts: list[str], spans: list[list[Span]]) -> Iterator[Encoded]:
        """As the tokenizer encodes; its own offsets cost time, and where the bytes of its tokens tell them, they do."""
        if self._bytes is None:
            encodings = self._plain.encode_batch(texts, add_special_tokens=False)
            yield from map(self._encoded, encodings, spans)
            return
        without_offsets = self._plain.encode_batch_fast(texts, add_special_tokens=False)
        for text, own_spans, encoding in zip(texts, spans, without_offsets, strict=True):
            ids = encoding.ids
            offsets = self._bytes.offsets(ids, text)
            if offsets is None:  # the tokenizer changes this text before it encodes it
                yield self._encoded(self._plain.encode(text, add_special_tokens=False), own_spans)
            else:
                yield Encoded(np.array(ids, np.int32), offsets)

    @functools.cached_property
    def _bytes(self) -> TokenBytes | None:
        return TokenBytes.of(self._plain)

    def _encode_cut(self, text: str, spans: list[Span]) -> Encoded | ExampleError:
        """Cuts at the intended special tokens only; proven on the same text with the others made harmless."""
        harmless = self._make_harmless(text, spans)
        expected = self._plain.encode(harmless, add_special_tokens=False).ids
        if self._cut(harmless, spans).ids.tolist() != expected:
            return ExampleError(
                "a message spells a special token, and this tokenizer cannot treat it as text",
                "its pieces encode differently alone than together; remove the special token from the message",
            )
        return self._cut(text, spans)

    def _make_harmless(self, text: str, intended: list[Span]) -> str:
        """The text with a letter in place of each character of special tokens that are not intended."""
        while unintended := [span for span in self.find_special(text) if span not in intended]:
            for start, end in unintended:
                text = text[:start] + "x" * (end - start) + text[end:]
        return text

    def _cut(self, text: str, spans: list[Span]) -> Encoded:
        ids, offsets, at = [], [], 0
        for start, end in [*spans, (len(text), len(text))]:
            number, token = self._special.get(text[start:end], (None, None))
            piece_end = start
            if token is not None and token.lstrip:  # such a token swallows the white space before it
                piece_end = at + len(text[at:start].rstrip())
            if at < piece_end:
                piece = self._blind.encode(text[at:piece_end], add_special_tokens=False)
                ids.extend(piece.ids)
                offsets.extend((at + first, at + last) for first, last in piece.offsets)
            if token is not None:
                ids.append(number)
                offsets.append((start, end))
            at = end
            if token is not None and token.rstrip:
                at += len(text[end:]) - len(text[end:].lstrip())
        return Encoded(np.array(ids, np.int32), np.array(offsets, np.int32).reshape(-1, 2))

    def _encoded(self, encoding: tokenizers.Encoding, spans: list[Span]) -> Encoded:
        ids = np.array(encoding.ids, np.int32)
        flat = np.fromiter(itertools.chain.from_iterable(encoding.offsets), np.int32, 2 * len(ids))
        offsets = flat.reshape(-1, 2)
        if self._swallows:  # the white space a special token swallows is not part of it
            for start, end in spans:
                offsets[(offsets[:, 0] <= start) & (offsets[:, 1] >= end)] = start, end
        return Encoded(ids, offsets)


def _pattern(tokens: Iterable[str]) -> re.Pattern:
    """Finds tokens in a text as the tokenizer does: leftmost, then longest; of none it finds nothing."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _without_post_processing(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A copy without truncation, padding and post-processing.

    The last may trim white space from the offsets, which would hide that a token reaches over the start of an answer.
    """
    copy = tokenizers.Tokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    copy.post_processor = tokenizers.processors.Sequence([])
    return copy
