"""Offsets told by the bytes of tokens are those of the tokenizers library, or there are none."""

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers

from sft_jax.data.rendering.byte_offsets import TokenBytes
from sft_jax.data.rendering.special_tokens import TextEncoder
from sft_jax.sources import load_tokenizer

_TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(
    st.sampled_from(["the", " the ", "é", "e\u0301", "日本", "👩‍🚀", "\n", "  ", "12345", "<|im_end|>", "ſ", "\x00"])
).map("".join)


@pytest.fixture(scope="module")
def smollm2():
    backend = load_tokenizer("smollm2-135m-instruct").backend_tokenizer
    return backend, TokenBytes.of(backend)


def _byte_level(normalizer=None, prefix_space=False) -> tokenizers.Tokenizer:
    vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    if normalizer is not None:
        backend.normalizer = normalizer
    return backend


@settings(max_examples=200, deadline=None)
@given(text=_TEXTS)
def test_any_text(smollm2, text):
    backend, token_bytes = smollm2
    expected = backend.encode(text, add_special_tokens=False)
    found = token_bytes.offsets(expected.ids, text)
    if found is None:  # the vocabulary lacks a byte, which the tokenizer leaves out
        assert backend.decode(expected.ids, skip_special_tokens=False) != text
    else:
        assert found.tolist() == [list(span) for span in expected.offsets]


@pytest.mark.parametrize(
    ("backend", "text", "known"),
    [
        (_byte_level(normalizers.NFC()), "é", True),
        (_byte_level(normalizers.NFC()), "e\u0301", False),
        (_byte_level(normalizers.Lowercase()), "abc", True),
        (_byte_level(normalizers.Lowercase()), "aBc", False),
        (_byte_level(prefix_space=True), " a", True),
        (_byte_level(prefix_space=True), "a", False),
    ],
)
def test_a_text_that_the_tokenizer_changes_first_has_none(backend, text, known):
    encoding = backend.encode(text)
    found = TokenBytes.of(backend).offsets(encoding.ids, text)
    assert (found is not None) == known
    assert not known or found.tolist() == [list(span) for span in encoding.offsets]


def test_tokens_that_are_not_spelt_in_bytes():
    backend = tokenizers.Tokenizer(models.BPE(vocab={"▁": 0, "a": 1, "▁a": 2}, merges=[("▁", "a")]))
    assert TokenBytes.of(backend) is None


@pytest.mark.parametrize("text", ["plain", "e\u0301 and é", "a<|x|> b"])
def test_the_encoder_gives_the_same_either_way(monkeypatch, text):
    backend = _byte_level(normalizers.NFC())
    backend.add_special_tokens([tokenizers.AddedToken("<|x|>", rstrip=True)])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    parts = [[(0, len(text))]]
    (found,) = TextEncoder(tokenizer).encode_many([text], parts)
    monkeypatch.setattr(TokenBytes, "of", lambda _: None)
    (expected,) = TextEncoder(tokenizer).encode_many([text], parts)
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.offsets.tolist() == expected.offsets.tolist()
