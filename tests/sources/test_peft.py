"""PEFT adapter directories: what their config may say, and broken ones."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from sft_jax.models.families import llama
from sft_jax.models.peft_loading import load_peft_adapter
from sft_jax.sources.peft import is_peft_directory, open_peft_adapter
from sft_jax.sources.tensors import SourceError
from tests import tiny

FIELDS = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "org/base",
    "r": 2,
    "lora_alpha": 8,
    "target_modules": ["q_proj"],
    "bias": "none",
}
PREFIX = "base_model.model.model.layers.{}.self_attn.q_proj."
DECODER = llama.decoder_config(tiny.HF_CONFIG)


def tensors(**changes):
    """A of all three layers [2, 32] and B [32, 2], with changes by (name, layer)."""
    made = {}
    for layer in range(3):
        made[PREFIX.format(layer) + "lora_A.weight"] = np.ones((2, 32), np.float32)
        made[PREFIX.format(layer) + "lora_B.weight"] = np.ones((32, 2), np.float32)
    made |= changes
    return {name: array for name, array in made.items() if array is not None}


def write(directory, fields=None, arrays=None):
    directory.mkdir(exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(FIELDS | (fields or {})))
    save_file(tensors() if arrays is None else arrays, directory / "adapter_model.safetensors")
    return directory


def test_what_a_config_says(tmp_path):
    """Patterns are matched at the end of a module's name, the first that matches counts, as in peft."""
    fields = {
        "rank_pattern": {r"layers\.1\.self_attn\.q_proj": 4, "q_proj": 3},
        "alpha_pattern": {"k_proj": 9},
        "use_rslora": True,
        "peft_version": "0.21.2",
        "lora_dropout": 0.25,
    }
    adapter = open_peft_adapter(write(tmp_path / "adapter", fields))
    ranks = [adapter.rank_of(f"model.layers.{i}.self_attn.{name}_proj") for i, name in ((0, "q"), (1, "q"), (1, "k"))]
    assert ranks == [3, 4, 2]
    assert adapter.scale_of("model.layers.1.self_attn.q_proj") == 8 / 4**0.5
    assert adapter.scale_of("model.layers.1.self_attn.k_proj") == 9 / 2**0.5
    assert (adapter.base, adapter.dropout, adapter.dora) == ("org/base", 0.25, False)
    assert is_peft_directory(tmp_path / "adapter")
    assert not is_peft_directory(tiny.write_checkpoint(tmp_path / "model"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type='LOHA'; expected 'LORA'"),
        ({"r": 0}, "r=0; expected a whole number from 1"),
        ({"lora_alpha": "much"}, "lora_alpha='much'; expected a positive number"),
        ({"lora_dropout": 1}, r"lora_dropout=1; expected a number in \[0, 1\)"),
        ({"bias": "all"}, "bias='all'; expected 'none'"),
        ({"use_dora": "yes"}, "use_dora='yes'; expected true or false"),
        ({"target_modules": 3}, "target_modules=3; expected a list of names"),
        ({"rank_pattern": {"q_proj": "2"}}, "rank_pattern=.*; expected an object of patterns"),
        ({"rank_pattern": {"(": 2}}, "rank_pattern=.*; expected an object of patterns"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] is not implemented"),
        ({"lora_bias": True}, "lora_bias=True is not implemented"),
        ({"layer_replication": [[0, 2]]}, "layer_replication=.* is not implemented"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices=.* is not implemented"),
        ({"field_of_tomorrow": 1}, "field_of_tomorrow=1 is not implemented"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa': it was saved as it was trained"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights='loftq' is not implemented"),
        ({"r": 0, "bias": "all"}, "(?s)r=0.*bias='all'"),
        ({"target_modules": ["k_proj"]}, "which peft would leave aside: no entry of target_modules"),
    ],
)
def test_configs_that_are_refused(fields, message, tmp_path):
    with pytest.raises(SourceError, match=message) as caught:
        open_peft_adapter(write(tmp_path / "adapter", fields))
    assert str(tmp_path / "adapter") in str(caught.value)


A0, B0 = PREFIX.format(0) + "lora_A.weight", PREFIX.format(0) + "lora_B.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({A0: None}, r"layers.0.self_attn.q_proj.lora_A is missing"),
        ({A0: np.ones((3, 32), np.float32)}, r"lora_A has shape \(3, 32\); expected \(2, 32\) \(rank 2\)"),
        ({B0: np.ones((31, 2), np.float32)}, r"lora_B has shape \(31, 2\); expected \(32, 2\)"),
        ({A0: np.ones((2, 32), np.int32)}, "holds int32; expected floating-point"),
        (
            {A0.replace("lora_A.weight", "lora_magnitude_vector"): np.ones(32, np.float32)},
            "lora_magnitude_vector is there, and adapter_config.json has use_dora=false",
        ),
        (
            {A0.replace("layers.0", "layers.7"): np.ones((2, 32), np.float32)},
            r"layers.7.self_attn.q_proj.lora_A.weight has no place in this model \(llama\)",
        ),
        ({A0: None, B0: np.ones((1, 2), np.float32)}, "(?s)lora_A is missing.*lora_B has shape"),
    ],
)
def test_tensors_that_are_refused(changes, message, tmp_path):
    adapter = open_peft_adapter(write(tmp_path / "adapter", arrays=tensors(**changes)))
    with pytest.raises(ValueError, match=message) as caught:
        load_peft_adapter(adapter, tiny.HF_CONFIG, DECODER)
    assert str(tmp_path / "adapter") in str(caught.value)


def test_a_tied_embedding_needs_its_head(tmp_path):
    name = "base_model.model.model.embed_tokens.lora_embedding_"
    arrays = {f"{name}A": np.ones((2, 320), np.float32), f"{name}B": np.ones((32, 2), np.float32)}
    directory = write(tmp_path / "adapter", {"target_modules": ["embed_tokens"]}, arrays)
    with pytest.raises(ValueError, match=r"the embedding alone has an adapter\. Merge it with peft into a base"):
        load_peft_adapter(open_peft_adapter(directory), tiny.HF_CONFIG, DECODER)
    write(directory, {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}, arrays)
    assert load_peft_adapter(open_peft_adapter(directory), tiny.HF_CONFIG, DECODER).ranks() == {"embedding": 2}


def test_weights_of_its_own_are_refused(tmp_path):
    """peft stores embeddings beside their adapters; they must be the base model's."""
    name = "base_model.model.model.embed_tokens."
    stored = tiny.tensors(tiny.HF_CONFIG)["model.embed_tokens.weight"]
    arrays = {f"{name}lora_embedding_A": np.ones((2, 320), np.float32)}
    arrays |= {f"{name}lora_embedding_B": np.ones((32, 2), np.float32), f"{name}base_layer.weight": stored}
    fields = {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}
    adapter = open_peft_adapter(write(tmp_path / "adapter", fields, arrays))
    loaded = load_peft_adapter(adapter, tiny.HF_CONFIG, DECODER)
    loaded.check_copies({"embedding": stored}, adapter.location)
    with pytest.raises(ValueError, match="brings its own embedding"):
        loaded.check_copies({"embedding": stored + 1}, adapter.location)


def test_a_layer_without_an_adapter_stays_without(tmp_path):
    adapter = open_peft_adapter(write(tmp_path / "adapter", arrays=tensors(**{A0: None, B0: None})))
    arrays = load_peft_adapter(adapter, tiny.HF_CONFIG, DECODER).in_layout("scan")["layers"]["attention"]["query"]
    assert arrays["a"].shape == (3, 32, 2)
    assert not arrays["a"][0].any()  # with B = 0 too, no gradient reaches either
    assert not arrays["b"][0].any()
    assert arrays["b"][1:].all()


def test_files_that_are_missing(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"has no adapter_config\.json"):
        open_peft_adapter(tmp_path / "empty")
    directory = write(tmp_path / "adapter")
    (directory / "adapter_model.safetensors").rename(directory / "adapter_model.bin")
    with pytest.raises(SourceError, match="pickled weights"):
        open_peft_adapter(directory)
