"""A reward model as a sequence classifier: its class by the kind of model, and a token that pads and ends no text."""

import numpy as np
import pytest

from sft_jax.exports.classifier import classifier_config, with_padding
from sft_jax.exports.directory import ExportError
from sft_jax.exports.golden import golden_of
from sft_jax.models.families import FAMILIES, decoder_of
from tests import tiny


def test_the_class_follows_from_the_kind_of_model():
    made = classifier_config(tiny.HF_CONFIG | {"architectures": ["LlamaForCausalLM"]})
    assert made["architectures"] == ["LlamaForSequenceClassification"]
    assert decoder_of(made).scores
    assert not decoder_of(tiny.HF_CONFIG).scores
    with pytest.raises(ValueError, match=r"config\.json has 3 labels of a text"):
        decoder_of(made | {"id2label": {"0": "a", "1": "b", "2": "c"}})
    with pytest.raises(ExportError, match=r"no sequence classifier of model_type=granite"):
        classifier_config({"model_type": "granite"})


def test_transformers_has_one_of_most_families():
    lacking = []
    for kind in FAMILIES:
        try:
            classifier_config({"model_type": kind})
        except ExportError:
            lacking.append(kind)
    assert "llama" not in lacking
    assert len(lacking) < len(FAMILIES) / 2


@pytest.mark.parametrize(("pad", "expected"), [("<|im_end|>", "<|endoftext|>"), ("<|endoftext|>", "<|endoftext|>")])
def test_padding_ends_no_text(pad, expected):
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = pad
    golden = golden_of(tokenizer, 512)
    made = with_padding(tokenizer, golden)
    assert made.pad_token == expected
    assert tokenizer.pad_token == pad, "the tokenizer that was given stays what it was"
    assert made.pad_token_id not in {*golden.stop_ids, int(golden.ids[-1])}


def test_where_no_special_token_is_left_one_is_added_as_advised():
    tokenizer = tiny.tokenizer()
    tokenizer.bos_token = "<|endoftext|>"
    golden = golden_of(tokenizer, 512)
    assert np.isin([1, 2], golden.ids).all()
    with pytest.raises(ExportError, match=r"--config\.model\.new_tokens=\"\('<\|pad\|>',\)\""):
        with_padding(tokenizer, golden)
    tokenizer.add_tokens(["<|pad|>"], special_tokens=True)
    assert with_padding(tokenizer, golden).pad_token == "<|pad|>"
