"""Metadata of a GGUF file that is not what it should be: an error that names the file, never a model."""

import itertools

import gguf
import numpy as np
import pytest

from sft_jax.sources import SourceError, load_tokenizer, open_checkpoint
from tests.sources.conftest import LLAMA_METADATA, LLAMA_SHAPES

TOKENS = ["<s>", "</s>", *(chr(ord("a") + i) for i in range(26)), "ab", *(f"<{i}>" for i in range(19))]
TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3, 3, *[1] * 46],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.padding_token_id": 1,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.add_eos_token": False,
    "tokenizer.chat_template": "{{ messages }}",
}
SENTENCEPIECE = TOKENIZER | {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.scores": [float(-i) for i in range(48)],
    "tokenizer.ggml.add_space_prefix": True,
}
NASTY = [0, 1, 2**32 - 2, True, 0.0, 0.5, float("inf"), float("nan"), "", "x", [3], [3, 4], ["a"], [0.5], [True]]
UNREAD = ("tokenizer.ggml.pre", "tokenizer.ggml.merges")  # by the SentencePiece kind
MODEL_KEYS = (*LLAMA_METADATA, "general.architecture", "llama.attention.key_length", "llama.rope.scaling.type")
FIELDS = [
    *((TOKENIZER, key, open_checkpoint) for key in (*MODEL_KEYS, "tokenizer.ggml.eos_token_id")),
    *((TOKENIZER, key, load_tokenizer) for key in TOKENIZER),
    *((SENTENCEPIECE, key, load_tokenizer) for key in SENTENCEPIECE if key not in UNREAD),
]


def write(path, metadata):
    writer = gguf.GGUFWriter(path, metadata.pop("general.architecture", "llama"))
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in metadata.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            adders[type(value)](key, value)
    for name, shape in LLAMA_SHAPES.items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_file_that_is_damaged_is_good(tmp_path):
    for name, tokenizer in (("a.gguf", TOKENIZER), ("b.gguf", SENTENCEPIECE)):
        path = write(tmp_path / name, LLAMA_METADATA | tokenizer)
        assert open_checkpoint(path).config["num_hidden_layers"] == 1
        assert load_tokenizer(path).convert_tokens_to_ids("ab") == 28


def refused(read, path) -> bool:
    """Refused with an error that names the file, or read; nothing else may happen."""
    try:
        read(path)
    except SourceError as error:
        return str(path) in str(error)
    return False


@pytest.mark.parametrize("number", range(len(FIELDS)), ids=[f"{key}-{n}" for n, (_, key, _) in enumerate(FIELDS)])
def test_every_field_with_nasty_values(tmp_path, number):
    tokenizer, key, read = FIELDS[number]
    values = [value for value in NASTY if isinstance(value, str)] if key == "general.architecture" else NASTY
    paths = [
        write(tmp_path / f"{count}.gguf", LLAMA_METADATA | tokenizer | {key: value})
        for count, value in enumerate(values)
    ]
    outcomes = [refused(read, path) for path in paths]  # of all, before the first is looked at
    assert any(outcomes)


@pytest.mark.parametrize(
    ("changes", "read", "message"),
    [
        ({"llama.attention.head_count": 0}, open_checkpoint, "head_count is 0; expected one whole number from 1"),
        ({"llama.attention.head_count": True}, open_checkpoint, "head_count is True; expected one whole number"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, open_checkpoint, "is nan; expected a number"),
        ({"tokenizer.ggml.bos_token_id": "x"}, load_tokenizer, "bos_token_id is 'x'; expected a whole number"),
        ({"tokenizer.ggml.eos_token_id": 48}, load_tokenizer, "eos_token_id is 48, but there are 48 tokens"),
        ({"tokenizer.ggml.merges": 3}, load_tokenizer, "merges is 3; expected a list of strings"),
        ({"tokenizer.ggml.tokens": [1, 2]}, load_tokenizer, r"tokens is \[1, 2\]; expected a list of strings"),
        ({"tokenizer.ggml.add_bos_token": "x"}, load_tokenizer, "add_bos_token is 'x'; expected true or false"),
        ({"tokenizer.chat_template": ["a"]}, load_tokenizer, r"chat_template is \['a'\]; expected a string"),
    ],
)
def test_messages(tmp_path, changes, read, message):
    path = write(tmp_path / "model.gguf", LLAMA_METADATA | TOKENIZER | changes)
    with pytest.raises(SourceError, match=message):
        read(path)


def test_frequencies_of_an_absurd_head_are_refused_at_once(tmp_path):
    sizes = dict.fromkeys(itertools.chain(("llama.attention.key_length", "llama.attention.value_length")), 2**30)
    writer_path = write(tmp_path / "model.gguf", LLAMA_METADATA | TOKENIZER | sizes)
    with pytest.raises(SourceError, match=r"expected 4 heads x 1073741824"):
        open_checkpoint(writer_path)
