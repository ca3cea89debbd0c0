"""The text part of multimodal wrappers beside torch: both layouts of names, published shapes, adapters of peft."""

import copy
import dataclasses
import re

import numpy as np
import peft
import pytest
import torch
import transformers
from absl import logging
from safetensors.torch import load_file, save_file

from sft_jax.models import load_pretrained, loading
from sft_jax.models.families import get_family
from sft_jax.models.loading import decoder_config
from sft_jax.models.peft_adapters import peft_adapter, settings_of
from sft_jax.models.peft_loading import load_peft_adapter
from sft_jax.sources import SourceError, open_checkpoint
from sft_jax.sources.checkpoint import PretrainedCheckpoint
from sft_jax.sources.peft import open_peft_adapter
from sft_jax.sources.tensors import TensorEntry
from sft_jax.sources.wrappers import unwrapped
from tests import tiny
from tests.models import families, reference, test_published_families

CASES = ("gemma3 wrapper", "mistral3 wrapper")
IDS = reference.tokens(2, 24)


@pytest.fixture(scope="module", params=CASES)
def wrapper(request, tmp_path_factory):
    """(torch model, a directory in the layout of transformers 5's modules, one in the older layout)."""
    model, root = families.torch_model(request.param), tmp_path_factory.mktemp("wrappers")
    model.save_pretrained(root / "new", save_original_format=False)
    model.save_pretrained(root / "old", save_original_format=True)
    return model, root / "new", root / "old"


def test_both_layouts_are_the_model_in_torch(wrapper):
    torch_model, *directories = wrapper
    expected = families.torch_logits(torch_model, IDS)
    layouts = [set(open_checkpoint(directory).wrapper.tensors) for directory in directories]
    assert not layouts[0] & layouts[1]
    for directory in directories:
        np.testing.assert_allclose(reference.logits_of(*load_pretrained(directory), IDS), expected, atol=1e-4)


@pytest.mark.parametrize("case", ["qwen3_5_text", "qwen3_5_moe_text"])
def test_a_text_model_that_kept_the_names_of_its_wrapper(case, tmp_path):
    """As text models are published that were cut out of Qwen 3.5; transformers loads them too."""
    torch_model = families.torch_model(case)
    torch_model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    names = {name: re.sub(r"^model\.", "model.language_model.", name) for name in stored}
    save_file({names[name]: tensor for name, tensor in stored.items()}, tmp_path / "model.safetensors")
    theirs = type(torch_model).from_pretrained(tmp_path, dtype=torch.float32).eval()
    expected = families.torch_logits(torch_model, IDS)
    np.testing.assert_allclose(families.torch_logits(theirs, IDS), expected, atol=1e-4)
    np.testing.assert_allclose(reference.logits_of(*load_pretrained(tmp_path), IDS), expected, atol=1e-4)
    twice = "model.norm.weight"
    both = load_file(tmp_path / "model.safetensors") | {twice: stored[twice]}
    save_file(both, tmp_path / "model.safetensors")
    with pytest.raises(SourceError, match=r"model\.norm\.weight is there twice, also as model\.language_model\.norm"):
        load_pretrained(tmp_path)


def test_rows_of_text_are_read_causally(wrapper):
    """The processor marks tokens of images, among which attention goes both ways; text has none."""
    torch_model, directory, _ = wrapper
    if torch_model.config.model_type != "gemma3":
        pytest.skip("no such marks")
    ids = torch.from_numpy(IDS).long()
    with torch.no_grad():
        marked = torch_model(input_ids=ids, token_type_ids=torch.zeros_like(ids)).logits.numpy()
    np.testing.assert_allclose(reference.logits_of(*load_pretrained(directory), IDS), marked, atol=1e-4)


def test_what_is_left_aside_is_said_once(wrapper, monkeypatch):
    _, directory, _ = wrapper
    lines = []
    monkeypatch.setattr(logging, "warning", lambda form, line: lines.append(line))
    loading._say.cache_clear()
    for _ in range(2):
        load_pretrained(directory)
    (line,) = lines
    assert "tensors of the vision tower" in line
    assert "tensors of the projector of images" in line
    assert "are left aside, since text alone is trained on" in line


def gemma4(text):
    """A Gemma 4 with this text config; its towers are tiny."""
    return {
        "model_type": "gemma4",
        "architectures": ["Gemma4ForConditionalGeneration"],
        "audio_config": None,
        "audio_token_id": 258_881,
        "boa_token_id": 256_000,
        "boi_token_id": 255_999,
        "dtype": "bfloat16",
        "eoa_token_id": 258_883,
        "eoa_token_index": 258_883,
        "eoi_token_id": 258_882,
        "eos_token_id": [1, 106],
        "image_token_id": 258_880,
        "initializer_range": 0.02,
        "text_config": text,
        "tie_word_embeddings": True,
        "video_token_id": 258_884,
        "vision_config": families.CASES["gemma4 wrapper"][0]["vision_config"],
        "vision_soft_tokens_per_image": 280,
    }


# As their makers published them; what Gemma 3's leaves out are the defaults of its text config.
PUBLISHED = {
    "gemma 3 4b": {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": 255_999,
        "eoi_token_index": 256_000,
        "eos_token_id": [1, 106],
        "image_token_index": 262_144,
        "initializer_range": 0.02,
        "mm_tokens_per_image": 256,
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10_240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "torch_dtype": "bfloat16",
        "vision_config": {"model_type": "siglip_vision_model", **families.TOWER},
    },
    "gemma 4 e2b": gemma4(test_published_families.GEMMA4_E2B),
    "gemma 4 31b": gemma4(test_published_families.GEMMA4_31B),
    "mistral small 3.1 24b": {
        "model_type": "mistral3",
        "architectures": ["Mistral3ForConditionalGeneration"],
        "image_token_index": 10,
        "multimodal_projector_bias": False,
        "projector_hidden_act": "gelu",
        "spatial_merge_size": 2,
        "text_config": {
            "attention_dropout": 0.0,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 5120,
            "initializer_range": 0.02,
            "intermediate_size": 32_768,
            "max_position_embeddings": 131_072,
            "model_type": "mistral",
            "num_attention_heads": 32,
            "num_hidden_layers": 40,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1_000_000_000.0,
            "sliding_window": None,
            "use_cache": True,
            "vocab_size": 131_072,
        },
        "torch_dtype": "bfloat16",
        "vision_config": {"model_type": "pixtral", "head_dim": 8, **families.TOWER},
        "vision_feature_layer": -1,
    },
}


def unread(start, stop):
    raise AssertionError("nothing is to be read")


def unused(text):
    """What files of Gemma 4 E2B and E4B have, and no model: layers that read the keys of another have projections."""
    shapes, layers = {}, text["num_hidden_layers"]
    for layer in range(layers - text.get("num_kv_shared_layers", 0), layers):
        width = text["global_head_dim" if text["layer_types"][layer] == "full_attention" else "head_dim"]
        attention = f"model.language_model.layers.{layer}.self_attn"
        shapes[f"{attention}.k_norm.weight"] = (width,)
        for name in ("k_proj", "v_proj"):
            shapes[f"{attention}.{name}.weight"] = (width * text["num_key_value_heads"], text["hidden_size"])
    return shapes


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_have_the_tensors_that_torch_has(name):
    """Shapes alone. The towers are tiny: nothing is read of them."""
    published = PUBLISHED[name]
    fields = copy.deepcopy(published)
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    shapes = {label: tuple(parameter.shape) for label, parameter in model.named_parameters()}
    shapes |= {label: (1,) for label, _ in model.named_buffers() if label.endswith("layer_scalar")}
    shapes |= unused(published["text_config"])
    if name == "mistral small 3.1 24b":  # its head is stored; transformers ties by default, and sees that it may not
        shapes["lm_head.weight"] = shapes["model.language_model.embed_tokens.weight"]
    entries = {label: TensorEntry(shape, np.dtype(np.float32), unread) for label, shape in shapes.items()}
    text, tensors, around = unwrapped(published, entries, name)
    decoder = decoder_config(PretrainedCheckpoint(name, name, text, tensors, "", wrapper=around))
    loading._check_table(PretrainedCheckpoint(name, name, text, tensors, ""), get_family(text).tensor_table(decoder))
    assert sum(around.skipped().values()) == len(shapes) - len(tensors) > 10
    theirs = config.text_config
    assert decoder.max_positions == theirs.max_position_embeddings
    first = theirs.per_layer_config[0] if "gemma 4" in name else theirs
    assert (decoder.num_heads, decoder.num_kv_heads) == (theirs.num_attention_heads, first.num_key_value_heads)
    windows = [window or None for window in decoder.layer_windows or (0,) * decoder.num_layers]
    kinds = getattr(theirs, "layer_types", None) or ["full_attention"] * decoder.num_layers
    assert windows == [theirs.sliding_window if kind == "sliding_attention" else None for kind in kinds]


def adapted(torch_model, directory, **fields):
    """A directory of peft's own with the adapter beside the model in torch; gives its logits with that."""
    made = peft.LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=7, **fields)
    wrapped = peft.get_peft_model(copy.deepcopy(torch_model), made).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name and "language_model" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    wrapped.save_pretrained(directory)
    return wrapped


def load(directory, checkpoint):
    adapter = open_peft_adapter(directory)
    return load_peft_adapter(adapter, checkpoint.config, decoder_config(checkpoint), checkpoint.wrapper)


def test_an_adapter_of_all_layers_is_read_where_the_towers_part_is_as_it_began(wrapper, tmp_path):
    torch_model, directory, _ = wrapper
    checkpoint = open_checkpoint(directory)
    wrapped = adapted(torch_model, tmp_path / "text", target_modules=["q_proj", "down_proj"])
    found = load(tmp_path / "text", checkpoint)
    assert found.ranks() == {"attention/query": 3, "ffn/down": 3}
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name and "vision_tower" in name and "q_proj" in name:
                parameter.add_(1.0)
    wrapped.save_pretrained(tmp_path / "both")
    with pytest.raises(ValueError, match=r"vision_tower.*q_proj\.lora_B\.weight is trained and of the vision tower"):
        load(tmp_path / "both", checkpoint)


def test_an_adapter_under_the_names_of_the_older_layout(wrapper, tmp_path):
    """As peft wrote it on transformers before 4.52, when the modules were named so."""
    torch_model, directory, _ = wrapper
    checkpoint = open_checkpoint(directory)
    adapted(torch_model, tmp_path, target_modules=r".*language_model.*(q|v)_proj")
    adapter, newer = open_peft_adapter(tmp_path), load(tmp_path, checkpoint)
    renamed = {
        name.replace("model.language_model.", "language_model.model."): entry for name, entry in adapter.tensors.items()
    }
    older = dataclasses.replace(
        adapter, tensors=renamed, alpha_pattern={r"language_model\.model\.layers\.1\.self_attn\.q_proj": 14}
    )
    found = load_peft_adapter(older, checkpoint.config, decoder_config(checkpoint), checkpoint.wrapper)
    ours, theirs = (reference.flat(adapter.in_layout("unrolled")) for adapter in (found, newer))
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        times = 2 if path == "layers_1/attention/query/b" else 1
        np.testing.assert_allclose(leaf, theirs[path] * times, rtol=1e-6, err_msg=path)


def test_an_exported_adapter_leaves_the_towers_alone(wrapper, tmp_path):
    """Their layers have the same names."""
    _, directory, _ = wrapper
    checkpoint = open_checkpoint(directory)
    config = decoder_config(checkpoint)
    options = tiny.adapter(rank=2, alpha=2.0, targets=("attention/query",))
    shape = (config.num_layers, config.model_dim, 2), (config.num_layers, 2, config.num_heads * config.head_dim)
    arrays = {"layers": {"attention": {"query": {"a": np.ones(shape[0]), "b": np.ones(shape[1])}}}}
    fields, tensors = peft_adapter(
        arrays, settings_of(options), checkpoint.config, config, "base", wrapper=checkpoint.wrapper
    )
    assert all(name.startswith("base_model.model.model.language_model.layers.") for name in tensors)
    made = peft.LoraConfig(
        target_modules=fields["target_modules"], exclude_modules=fields["exclude_modules"], task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(copy.deepcopy(wrapper[0]), made)
    beside = [name for name, _ in model.named_parameters() if "lora_A" in name]
    assert len(beside) == config.num_layers
    assert all("language_model" in name for name in beside)
