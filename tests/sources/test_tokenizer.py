"""Tokenizers of GGUF files and of Hugging Face directories."""

import itertools
import json
import re
import subprocess
import sys
import unicodedata

import gguf
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sft_jax.sources import SourceError, load_tokenizer
from sft_jax.sources.gguf_tokenizer import SPLITTINGS
from sft_jax.sources.locate import locate
from tests import buckets, tiny
from tests.sources import texts

SHORT_NAME = "smollm2-135m-instruct"

PIECES = [
    "The quick brown fox",
    "don't we'll I'M they've",
    "Hello, world!!! ... --- (x)",
    "naïve café Ångström e\u0301",
    "Москва и Київ",
    "東京で寿司を食べた。",
    "안녕하세요 세계",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "ไทยภาษา",
    "😀👍🏽 👩‍👩‍👧 ❤️ 🇫🇮",
    "def f(x):\n    return x ** y  # comment\n",
    '\tif (a && b) {\r\n\t\tcall("s");\r\n\t}',
    "<html><body class='a'>&nbsp;</body></html>",
    '{"vin": "ABC", "owner": null, "list": []}',
    "a  b   c    d",
    " leading and trailing ",
    "\n\n\n \n",
    "\u00a0\u2003\u200b\ufeff",
    "<|im_start|>user\nhi<|im_end|>\n",
    "x<|endoftext|>y<repo_name>z<|im_end|><|im_end|>",
    "<|im_start|",
    "snake_case_name CamelCaseName SCREAMING",
    "http://example.com/a?b=c&d=e#f",
    "v1.2.3 2024x",
    "",
]
TEXTS = PIECES + [first + second for first, second in itertools.product(PIECES, PIECES)]
# The splitting at digits differs on purpose, see test_digits_are_split_as_in_the_models_own_tokenizer.
BLANK_BEFORE_DIGIT = re.compile(r"\s\d")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(SHORT_NAME)


@pytest.fixture(scope="module")
def theirs():
    """transformers' own reading of the same file (needs torch)."""
    path = locate(SHORT_NAME).path
    return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)


def test_ids_equal_transformers(tokenizer, theirs):
    texts = [text for text in TEXTS if not BLANK_BEFORE_DIGIT.search(text)]
    assert len(texts) > 600
    ours = tokenizer(texts)["input_ids"]
    assert [text for text, a, b in zip(texts, ours, theirs(texts)["input_ids"], strict=True) if a != b] == []
    assert tokenizer.batch_decode(ours) == texts
    assert tokenizer.batch_decode(ours, skip_special_tokens=True) == theirs.batch_decode(ours, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12", ["1", "2"]),
        ("x 12", ["x", "Ġ", "1", "2"]),
        ("x   12", ["x", "ĠĠĠ", "1", "2"]),
        ("a1b", ["a", "1", "b"]),
        ("\n 7", ["ĊĠ", "7"]),
    ],
)
def test_digits_are_split_as_in_the_models_own_tokenizer(tokenizer, text, expected):
    """SmolLM2's tokenizer.json splits at every digit, then as GPT-2; so does llama.cpp for "smollm".

    transformers 5.23 reads a GGUF file without the first step: "x   12" becomes x, ĠĠ, Ġ, 1, 2.
    """
    assert tokenizer.tokenize(text) == expected


def test_a_thousand_texts_equal_transformers_between_digits(tokenizer, theirs):
    """transformers 5.23 does not split at digits in this file: what lies between the digits is compared."""
    samples = texts.varied(["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>"])
    assert len(samples) >= 1000

    def between_digits(text):
        runs = itertools.groupby(text, key=lambda char: unicodedata.category(char).startswith("N"))
        return [part for is_digit, run in runs for part in (run if is_digit else ["".join(run)])]

    parts = list({part for text in samples for part in between_digits(text)})
    ids_of = dict(zip(parts, theirs(parts)["input_ids"], strict=True))
    for text, ids in zip(samples, tokenizer(samples)["input_ids"], strict=True):
        assert ids == [id_ for part in between_digits(text) for id_ in ids_of[part]], repr(text)


def test_special_tokens(tokenizer, theirs):
    for name in ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id"):
        assert getattr(tokenizer, name) == getattr(theirs, name), name
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert len(tokenizer) == 49152
    assert tokenizer.get_vocab() == theirs.get_vocab()
    added = tokenizer.added_tokens_decoder
    assert sorted(added) == list(range(17))
    assert all(token.special for token in added.values())
    assert tokenizer("hi")["input_ids"] == tokenizer("hi", add_special_tokens=False)["input_ids"]


def test_chat_template(tokenizer, theirs):
    conversation = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    text = tokenizer.apply_chat_template(conversation, tokenize=False)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n")
    assert text == theirs.apply_chat_template(conversation, tokenize=False)


NAMED = {"default": "{{ messages[0].content }}\n", "tool_use": "{{ tools }}", "rag": "\u00e4{# rag #}"}


def write_named(directory, *, in_config):
    """A tokenizer with three chat templates, all in tokenizer_config.json or each in a file."""
    directory.mkdir()
    backend = Tokenizer(models.BPE({"a": 0, "<s>": 1}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(directory)
    if in_config:
        config = json.loads((directory / "tokenizer_config.json").read_text())
        config["chat_template"] = [{"name": name, "template": text} for name, text in NAMED.items()]
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    else:
        (directory / "chat_template.jinja").write_text(NAMED["default"])
        (directory / "additional_chat_templates").mkdir()
        for name in ("tool_use", "rag"):
            (directory / "additional_chat_templates" / f"{name}.jinja").write_text(NAMED[name])
    return directory


@pytest.mark.parametrize("in_config", [True, False])
def test_named_templates(tmp_path, in_config):
    directory = write_named(tmp_path / "named", in_config=in_config)
    assert load_tokenizer(directory).chat_template == NAMED
    assert AutoTokenizer.from_pretrained(directory).chat_template == NAMED
    bucket = buckets.empty("named")
    for path in directory.rglob("*"):
        if path.is_file():
            (bucket / str(path.relative_to(directory))).parent.mkdir(parents=True, exist_ok=True)
            (bucket / str(path.relative_to(directory))).write_bytes(path.read_bytes())
    assert load_tokenizer(bucket).chat_template == NAMED


def test_the_template_of_a_processor(tmp_path):
    """Multimodal models were saved with it apart from the tokenizer; the tokenizer's own comes first."""
    tiny.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert load_tokenizer(tmp_path).chat_template == tiny.CHATML
    (tmp_path / "chat_template.jinja").unlink()
    assert load_tokenizer(tmp_path).chat_template == "{{ messages }}"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": 3}))
    with pytest.raises(SourceError, match="its chat_template is 3; expected text"):
        load_tokenizer(tmp_path)


def test_named_templates_that_are_none(tmp_path):
    directory = write_named(tmp_path / "named", in_config=True)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": {"default": 3}}))
    with pytest.raises(SourceError, match=r"its chat_template is \{'default': 3\}; expected text, or texts by name"):
        load_tokenizer(directory)


def test_named_templates_of_a_gguf_file(tmp_path):
    """As the package gguf writes them."""
    path = tmp_path / "named.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TINY["tokenizer.ggml.tokens"])
    writer.add_token_types(TINY["tokenizer.ggml.token_type"])
    writer.add_token_merges(TINY["tokenizer.ggml.merges"])
    writer.add_chat_template([{"name": name, "template": text} for name, text in NAMED.items()])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert load_tokenizer(path).chat_template == NAMED


TINY = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["a", "b", "c", "ab", "abc", "Ġ", "<s>", "<tool x>", "cb", "<pad>"],
    "tokenizer.ggml.merges": ["a b", "ab c"],
    "tokenizer.ggml.token_type": [1, 1, 1, 1, 1, 1, 3, 4, 1, 5],
    "tokenizer.ggml.bos_token_id": 6,
}


@pytest.mark.parametrize(
    ("metadata", "text", "expected"),
    [
        ({}, "abc a<s>b", [4, 5, 0, 6, 1]),
        ({}, "c<tool x>cb", [2, 7, 2, 1]),  # the added token is whole, "cb" has no merge
        ({}, "a<pad>", [0, None]),  # an unused token is not found in text
        ({"tokenizer.ggml.pre": "llama-bpe"}, "cb", [6, 8]),  # whole pieces are taken, and BOS is added
        ({"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False}, "cb", [8]),
        ({"tokenizer.ggml.add_bos_token": True}, "ab", [6, 3]),
    ],
)
def test_tiny_file(tmp_path, write_gguf, metadata, text, expected):
    tokenizer = load_tokenizer(write_gguf(tmp_path / "tiny.gguf", {}, TINY | metadata))
    ids = tokenizer(text)["input_ids"]
    assert ids[: len(expected)] == expected if None not in expected else 9 not in ids
    assert tokenizer.chat_template is None
    assert tokenizer.pad_token_id is None


@pytest.mark.parametrize("pre", ["llama-bpe", "smollm", "gpt-2"])
def test_splitting(tmp_path, write_gguf, pre):
    tokenizer = load_tokenizer(write_gguf(tmp_path / "tiny.gguf", {}, TINY | {"tokenizer.ggml.pre": pre}))
    pieces = [
        piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("I'LL pay 12345.\n\n  x")
    ]
    assert (
        pieces
        == {
            "llama-bpe": ["I", "'LL", "Ġpay", "Ġ", "123", "45", ".ĊĊ", "Ġ", "Ġx"],
            "smollm": ["I", "'", "LL", "Ġpay", "Ġ", "1", "2", "3", "4", "5", ".", "ĊĊĠ", "Ġx"],
            "gpt-2": ["I", "'", "LL", "Ġpay", "Ġ12345", ".", "ĊĊĠ", "Ġx"],
        }[pre]
    )


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"tokenizer.ggml.model": "t5"}, r"of the kind 't5' .*supported are 'gpt2'.* 'llama'.* and 'gemma4'"),
        ({"tokenizer.ggml.model": None}, r"has no metadata 'tokenizer.ggml.model'"),
        ({"tokenizer.ggml.pre": "falcon"}, r"pre-tokenizer 'falcon' .*supported are gpt-2, smollm"),
        ({"tokenizer.ggml.pre": None}, r"pre-tokenizer None"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, r"holds 1 tokens twice"),
        ({"tokenizer.ggml.merges": ["a b", "b c"]}, r"merge 1 \('b', 'c'\) is not of two tokens"),
        ({"tokenizer.ggml.merges": ["a"]}, r"merge 0 \('a',\) is not of two tokens"),
        ({"tokenizer.ggml.token_type": [1, 1]}, r"2 token types for 10 tokens"),
        ({"tokenizer.ggml.bos_token_id": 10}, r"bos_token_id is 10, but there are 10 tokens"),
    ],
)
def test_gguf_tokenizers_that_are_refused(tmp_path, write_gguf, metadata, message):
    path = write_gguf(tmp_path / "tiny.gguf", {}, TINY | metadata)
    with pytest.raises(SourceError, match=f"{re.escape(str(path))}: .*{message}"):
        load_tokenizer(path)


def test_every_splitting_keeps_the_text(tmp_path, write_gguf):
    for pre in SPLITTINGS:
        tokenizer = load_tokenizer(write_gguf(tmp_path / f"{pre}.gguf", {}, TINY | {"tokenizer.ggml.pre": pre}))
        for text in PIECES:
            pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
            assert tokenizer.backend_tokenizer.decoder.decode([piece for piece, _ in pieces]) == text


@pytest.fixture
def saved(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_directory(tokenizer, saved):
    ours = load_tokenizer(saved)
    assert ours(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert ours(TEXTS)["input_ids"] == AutoTokenizer.from_pretrained(saved)(TEXTS)["input_ids"]
    assert ours.chat_template == tokenizer.chat_template
    assert (ours.bos_token_id, ours.eos_token_id) == (1, 2)


def test_directory_whose_config_names_another_class(tokenizer, saved):
    """The SmolLM2 repository names GPT2Tokenizer; tokenizer.json is what counts."""
    config = json.loads((saved / "tokenizer_config.json").read_text())
    (saved / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "GPT2Tokenizer"}))
    assert load_tokenizer(saved)("x   12")["input_ids"] == tokenizer("x   12")["input_ids"]


def test_truncation_and_padding_of_a_file_are_switched_off(tmp_path):
    backend = Tokenizer(models.BPE({"a": 0, "<pad>": 1}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.enable_truncation(3)
    backend.enable_padding(length=8, pad_token="<pad>", pad_id=1)
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path)
    assert '"max_length": 3' in (tmp_path / "tokenizer.json").read_text()
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.backend_tokenizer.encode("aaaaa").ids == [0] * 5
    assert tokenizer("aaaaa")["input_ids"] == [0] * 5
    assert tokenizer.chat_template is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, r"has no tokenizer: expected tokenizer.json or"),
        ("tokenizer.json", '{"version": ', r"tokenizer.json: is not valid JSON"),
        ("tokenizer_config.json", "[]", r"tokenizer_config.json: expected a JSON object"),
    ],
)
def test_damaged_directories(saved, name, content, message):
    if content is None:
        (saved / name).unlink()
    else:
        (saved / name).write_text(content)
    with pytest.raises(SourceError, match=message):
        load_tokenizer(saved)


def test_torch_is_not_imported_where_it_is_installed(saved):
    program = f"""
import sys
from sft_jax.sources import load_tokenizer
load_tokenizer({SHORT_NAME!r}), load_tokenizer({str(saved)!r})
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_torch(saved):
    """Both kinds of source load where torch is not installed; the package does not need JAX either."""
    program = f"""
import sys
sys.modules["torch"] = sys.modules["jax"] = None  # as if they were not installed
from sft_jax.sources import load_tokenizer, open_checkpoint
for source in ({SHORT_NAME!r}, {str(saved)!r}):
    tokenizer = load_tokenizer(source)
    tokenizer.apply_chat_template([{{"role": "user", "content": "Hi"}}], tokenize=False)
    assert tokenizer("Hi")["input_ids"]
open_checkpoint({SHORT_NAME!r}).tensors["model.norm.weight"].load()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
