"""Multimodal wrappers: which config and which tensors are those of the text model, and what an export says of both."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from sft_jax.models.loading import decoder_config
from sft_jax.sources import SourceError, open_checkpoint
from sft_jax.sources.wrappers import WRAPPERS, unwrapped

NEW = {"model.": "model.language_model.", "head": "lm_head.weight", "rest": "model."}
OLD = {"model.": "language_model.model.", "head": "language_model.lm_head.weight", "rest": ""}
TEXT = {
    "model_type": "mistral",
    "vocab_size": 8,
    "hidden_size": 4,
    "intermediate_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "sliding_window": None,
}


def write(directory, layout, *, head=True, others=(), outer=None, text=None):
    """A wrapper's directory with three tensors of the text model and two others."""
    names = [layout["model."] + name for name in ("embed_tokens.weight", "norm.weight")]
    names += [layout["head"]] if head else []
    names += [layout["rest"] + name for name in ("vision_tower.ln.weight", "multi_modal_projector.linear_1.weight")]
    tensors = {name: np.full(2, number, np.float32) for number, name in enumerate([*names, *others])}
    directory.mkdir(exist_ok=True)
    save_file(tensors, directory / "model.safetensors")
    config = {"model_type": "mistral3", "text_config": TEXT | (text or {}), "vision_config": {}} | (outer or {})
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("layout", [NEW, OLD], ids=["new", "old"])
def test_the_text_model_under_the_names_of_its_family(layout, tmp_path):
    checkpoint = open_checkpoint(write(tmp_path / "model", layout))
    assert checkpoint.tensors.keys() == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert checkpoint.config["model_type"] == "mistral"
    for name, entry in checkpoint.tensors.items():
        np.testing.assert_array_equal(entry.load(), checkpoint.wrapper.tensors[checkpoint.stored_name(name)].load())
    assert checkpoint.stored_name("model.norm.weight") == layout["model."] + "norm.weight"
    assert checkpoint.wrapper.skipped() == {"the vision tower": 1, "the projector of images": 1}
    assert "1 tensors of the vision tower" in checkpoint.wrapper.summary()


@pytest.mark.parametrize("layout", [NEW, OLD], ids=["new", "old"])
@pytest.mark.parametrize("name", ["audio_tower.layer.weight", "model.norm.bias", "lm_heads.weight", "vision_towers.x"])
def test_a_tensor_of_which_nothing_is_known_is_named(layout, name, tmp_path):
    directory = write(tmp_path / "model", layout, others=(name, "model.audio_tower.weight"))
    with pytest.raises(SourceError, match=r"model: a mistral3 model with tensors that are neither of") as error:
        open_checkpoint(directory)
    listed = ", ".join(sorted(["model.audio_tower.weight", name]))
    assert f"vision_tower, multi_modal_projector: {listed}. It is not known" in str(error.value)


def test_a_tensor_of_the_text_model_that_its_family_lacks_is_named_as_in_the_file(tmp_path):
    from sft_jax.models import load_pretrained

    directory = write(tmp_path / "model", OLD, others=("language_model.model.layers.0.extra.weight",))
    with pytest.raises(ValueError, match=r"language_model\.model\.layers\.0\.extra\.weight is not used") as error:
        load_pretrained(directory)
    assert "language_model.model.layers.0.mlp.up_proj.weight is missing" in str(error.value)


@pytest.mark.parametrize(
    ("outer", "text", "head", "tied"),
    [
        ({}, {}, True, None),
        ({"tie_word_embeddings": False}, {}, True, False),
        ({}, {"tie_word_embeddings": True}, False, True),
        ({"tie_word_embeddings": True}, {"tie_word_embeddings": True}, True, True),
        # transformers writes out the defaults of both, which differ for mistral3: the weights know.
        ({"tie_word_embeddings": True}, {"tie_word_embeddings": False}, True, False),
        ({"tie_word_embeddings": True}, {"tie_word_embeddings": False}, False, True),
    ],
)
def test_whether_head_and_embedding_are_one(outer, text, head, tied, tmp_path):
    checkpoint = open_checkpoint(write(tmp_path / "model", NEW, head=head, outer=outer, text=text))
    assert checkpoint.config.get("tie_word_embeddings") is tied


def test_a_field_of_the_wrapper_of_which_nothing_is_known_is_named(tmp_path):
    checkpoint = open_checkpoint(write(tmp_path / "model", NEW, outer={"logits_cap": 30.0}))
    with pytest.raises(ValueError, match=r"not implemented for model_type='mistral3': logits_cap=30\.0"):
        decoder_config(checkpoint)
    decoder_config(open_checkpoint(write(tmp_path / "model", NEW, outer={"image_token_index": 10})))


def test_errors_of_the_text_config_say_so(tmp_path):
    checkpoint = open_checkpoint(write(tmp_path / "model", NEW, text={"model_type": "mystery"}))
    with pytest.raises(ValueError, match=r"model: text_config: config\.json has model_type='mystery'; .*mistral3"):
        decoder_config(checkpoint)
    with pytest.raises(SourceError, match=r'x: model_type=\'gemma3\' without a "text_config"'):
        unwrapped({"model_type": "gemma3"}, {}, "x")


def test_a_random_model_of_a_wrapper_is_its_text_model(tmp_path):
    directory = write(tmp_path / "model", NEW)
    checkpoint = open_checkpoint(f"random:{directory}?num_hidden_layers=3")
    assert checkpoint.wrapper is None
    assert checkpoint.config == {**TEXT, "num_hidden_layers": 3}


def test_what_a_later_config_changes(tmp_path):
    """Vocabulary and positions are of the text config; dtype and ids of the wrapper, and of the text if it has them."""
    outer = {"torch_dtype": "bfloat16", "eos_token_id": 7}
    checkpoint = open_checkpoint(write(tmp_path / "model", NEW, outer=outer, text={"bos_token_id": 3}))
    assert checkpoint.config["torch_dtype"] == "bfloat16"  # as the weights are, though the text config says nothing
    later = checkpoint.config | {"vocab_size": 16, "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": [5, 6]}
    said = checkpoint.wrapper.config_with(later)
    text = said.pop("text_config")
    assert text == TEXT | {"vocab_size": 16, "bos_token_id": 1}
    assert said == {
        "model_type": "mistral3",
        "vision_config": {},
        "torch_dtype": "float32",
        "eos_token_id": [5, 6],
        "bos_token_id": 1,
    }


@pytest.mark.parametrize("model_type", WRAPPERS)
def test_modules_that_are_not_read_are_found_in_both_layouts(model_type):
    kind = WRAPPERS[model_type]
    for module, what in kind.skipped.items():
        for name in (module, f"{module}.a", f"model.{module}.a.weight"):
            assert kind.what_is_skipped(name) == what
    assert not kind.what_is_skipped("model.language_model.vision_tower.a")
