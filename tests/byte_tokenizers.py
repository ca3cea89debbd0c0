"""Tiny tokenizers and templates: small enough to check every id and weight by hand."""

import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers

from sft_jax.audit.report import pieces
from sft_jax.data.conversations import Message

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def chatml():
    return CHATML


@pytest.fixture(scope="session")
def byte_tokenizer():
    """Makes a byte-level tokenizer: one id a byte, "th" and "the" merged, and the special tokens asked for."""

    def make(*special, eos=None, pad=None, chat_template=None):
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocab = {letter: number for number, letter in enumerate([*alphabet, "th", "the"])}
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("t", "h"), ("th", "e")]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens(list(special))
        names = {"eos_token": eos, "pad_token": pad}
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend, **{key: value for key, value in names.items() if value}
        )
        tokenizer.chat_template = chat_template
        return tokenizer

    return make


@pytest.fixture(scope="session")
def chatml_tokenizer(byte_tokenizer):
    return byte_tokenizer("<|im_start|>", "<|im_end|>", eos="<|im_end|>", pad="<|im_end|>", chat_template=CHATML)


@pytest.fixture(scope="session")
def chat():
    """A conversation from "user: Hi", "assistant: Hello!", ..."""

    def make(*turns):
        return tuple(Message(*turn.split(": ", 1)) for turn in turns)

    return make


@pytest.fixture(scope="session")
def trained():
    """The trained parts of a rendered example."""
    return lambda example: [text for text, is_trained in pieces(example) if is_trained]
