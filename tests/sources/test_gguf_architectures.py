"""Each architecture: a torch model, written as llama.cpp writes it, gives torch's logits here, and its config.

transformers' own reading of GGUF files is the second reference. Where it leaves out what the file says (`LOST`), the
config of the torch model is the reference instead, and transformers reads the tensors into a model of that config.
"""

import json
import re

import gguf
import numpy as np
import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from sft_jax.models import load_pretrained
from sft_jax.sources import SourceError, open_checkpoint
from tests.models import families, reference
from tests.sources import gguf_models

# Fields that transformers 5.23 does not take from the file: it reads no biases of Llama, no scaling of rope, no head
# dimension of Qwen 3, no soft caps, no base of layers with a window, and no model's query scale but 256.
LOST = {
    "llama": {"attention_bias", "mlp_bias"},
    "llama linear": {"rope_parameters"},
    "qwen2": set(),
    "qwen3": set(),
    "qwen3 yarn": {"head_dim", "rope_parameters"},
    "gemma2": {"attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"},
    "gemma3": {"query_pre_attn_scalar", "rope_parameters"},
}
# Fields that say nothing of what the model computes. Qwen 2 has no `head_dim`; a config may have one all the same.
WITHOUT_EFFECT = {"_model_name_or_path", "_name_or_path", "architectures", "dtype"}
ADDED = {"qwen2": {"head_dim"}}
YARN_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0}


@pytest.fixture(scope="module", params=gguf_models.CASES)
def case(request, tmp_path_factory):
    """(name, torch model, path of its GGUF file)."""
    model = gguf_models.torch_model(request.param)
    path = gguf_models.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", model)
    return request.param, model, path


def test_logits_equal_torch(case):
    _, torch_model, path = case
    ids = reference.tokens(2, 24)
    expected = families.torch_logits(torch_model, ids)
    assert expected.std() >= 1
    model, params = load_pretrained(path)
    np.testing.assert_allclose(reference.logits_of(model, params, ids), expected, atol=gguf_models.TOLERANCE, rtol=0)


def test_tensors_equal_transformers(case):
    name, torch_model, path = case
    config = torch_model.config if LOST[name] else None
    theirs = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype="float32", **({} if config is None else {"config": config})
    ).state_dict()
    ours = open_checkpoint(path).tensors
    tied = {"lm_head.weight"} if torch_model.config.tie_word_embeddings else set()
    assert theirs.keys() - tied == ours.keys()
    for label, entry in ours.items():
        np.testing.assert_array_equal(entry.load(), theirs[label].numpy(), err_msg=label)


def test_config_equals_transformers(case):
    name, torch_model, path = case
    (path.parent / "config.json").write_text(json.dumps(open_checkpoint(path).config))
    ours = AutoConfig.from_pretrained(path.parent)
    assert type(ours) is type(torch_model.config)
    theirs = AutoConfig.from_pretrained(path.parent, gguf_file=path.name).to_dict()
    true, ours = torch_model.config.to_dict(), ours.to_dict()
    if name == "qwen3 yarn":  # the file does not tell them from absent ones
        true["rope_parameters"] |= YARN_DEFAULTS
    expected = {key: true[key] if key in LOST[name] else theirs[key] for key in theirs.keys() - WITHOUT_EFFECT}
    expected["rms_norm_eps"] = pytest.approx(expected["rms_norm_eps"], rel=1e-6)  # theirs is the float32
    assert {key: ours[key] for key in ours.keys() - WITHOUT_EFFECT - ADDED.get(name, set())} == expected
    assert ours["rms_norm_eps"] == true["rms_norm_eps"]
    for field in LOST[name]:
        assert theirs[field] != true[field], f"{field} is no longer lost"


@pytest.fixture(scope="module", params=gguf_models.CASES_OF_TORCH)
def case_of_torch(request, tmp_path_factory):
    """(torch model, path of its GGUF file) where transformers is no second reference."""
    model = gguf_models.torch_model(request.param)
    return model, gguf_models.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", model)


def test_logits_tensors_and_config_equal_those_of_the_torch_model(case_of_torch):
    gguf_models.check_read(*case_of_torch)


def empty_model(write_gguf, path, architecture, tensors=None, raw_types=None, **metadata):
    """A file with an embedding and no layers: enough for its config."""
    keys = {
        "context_length": 128,
        "embedding_length": 32,
        "block_count": 26,
        "feed_forward_length": 64,
        "attention.head_count": 2,
        "attention.key_length": 8,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1e6,
    } | ({"attention.sliding_window": 4} if architecture.startswith("gemma") else {})
    keys = {f"{architecture}.{key}": value for key, value in keys.items()} | metadata
    llama = ("context_length", "embedding_length", "block_count", "feed_forward_length", "rope.freq_base")
    attention = ("head_count", "head_count_kv", "layer_norm_rms_epsilon")
    without = {f"llama.{key}": None for key in (*llama, *(f"attention.{key}" for key in attention))}
    arrays = {"token_embd.weight": np.zeros((48, 32), np.float32)} | (tensors or {})
    return write_gguf(path, arrays, without | keys, architecture=architecture, raw_types=raw_types)


@pytest.mark.parametrize(
    ("architecture", "num_layers", "expected"),
    [("gemma2", 26, 8), ("gemma2", 42, 8), ("gemma2", 46, 16)]
    + [("gemma3", layers, 8) for layers in (18, 26, 34, 48)]
    + [("gemma3", 62, 16)],
)
def test_query_scale_of_the_released_gemmas(tmp_path, write_gguf, architecture, num_layers, expected):
    """The head dimension, 8; in the 27B models the width through the heads, 32 / 2."""
    path = empty_model(write_gguf, tmp_path / "tiny.gguf", architecture, **{f"{architecture}.block_count": num_layers})
    assert open_checkpoint(path).config["query_pre_attn_scalar"] == expected


def test_what_old_gemma_files_leave_out(tmp_path, write_gguf):
    without = {"gemma2.attention.sliding_window": None, "gemma2.rope.freq_base": None}
    config = open_checkpoint(empty_model(write_gguf, tmp_path / "2.gguf", "gemma2", **without)).config
    fields = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping", "rope_theta")
    assert [config[field] for field in fields] == [4096, 50.0, 30.0, 10000.0]
    assert config["layer_types"][:4] == ["sliding_attention", "full_attention"] * 2
    config = open_checkpoint(empty_model(write_gguf, tmp_path / "3.gguf", "gemma3")).config
    assert (config["rope_local_base_freq"], config["final_logit_softcapping"]) == (10000.0, None)
    assert [layer for layer, kind in enumerate(config["layer_types"]) if kind == "full_attention"] == [5, 11, 17, 23]


@pytest.mark.parametrize(
    ("architecture", "metadata", "message"),
    [
        ("gemma2", {"gemma2.block_count": 27}, r"gemma2.block_count is 27; .*query_pre_attn_scalar.* 26, 42 or 46"),
        ("gemma3", {"gemma3.block_count": 32}, r"gemma3.block_count is 32; .* of gemma3 with 18, 26, 34, 48 or 62"),
        ("gemma3", {"gemma3.attention.sliding_window": None}, r"has no metadata 'gemma3.attention.sliding_window'"),
        ("gemma3", {"gemma3.rope.freq_base": None}, r"has no metadata 'gemma3.rope.freq_base'"),
        ("gemma3", {"gemma3.attn_logit_softcapping": 50.0}, r"not supported: gemma3.attn_logit_softcapping = 50.0"),
        ("gemma2", {"gemma2.attention.sliding_window_pattern": 3}, r"gemma2.attention.sliding_window_pattern = 3"),
        ("gemma2", {"gemma2.final_logit_softcapping": "no"}, r"softcapping is 'no'; expected a number"),
        ("qwen2", {"qwen2.attention.sliding_window": 4}, r"not supported: qwen2.attention.sliding_window = 4"),
        ("qwen2", {"qwen2.pooling_type": 3}, r"qwen2.pooling_type = 3"),
        ("qwen3", {"qwen3.expert_count": 8}, r"mixture of experts"),
        ("qwen3", {"qwen3.embedding_length": None}, r"has no metadata 'qwen3.embedding_length'"),
        ("qwen3", {"split.count": 2}, r"one part of a split GGUF file"),
        ("qwen3moe", {}, r"architecture 'qwen3moe'; GGUF files of llama, mistral3, granite, .* are supported"),
        ("granite", {"granite.embedding_scale": 12.0}, r"has no metadata 'granite.attention.scale'"),
        ("granite", {"granite.deepstack_mapping": [1]}, r"not supported: granite.deepstack_mapping"),
        ("mistral3", {}, r"mistral3.rope.scaling.type is None; expected 'yarn'"),
        ("olmo2", {"olmo2.attention.sliding_window": 4}, r"sliding_window_pattern is None; expected true or false for"),
        ("phi3", {"phi3.attention.sliding_window": "no"}, r"sliding_window is .no.; expected one whole number"),
        ("gpt-oss", {"gpt-oss.attention.sliding_window": 4}, r"has no metadata 'gpt-oss.expert_count'"),
        ("granitehybrid", {}, r"architecture 'granitehybrid'; GGUF files of"),
    ],
)
def test_metadata_that_is_refused(tmp_path, write_gguf, architecture, metadata, message):
    path = empty_model(write_gguf, tmp_path / "tiny.gguf", architecture, **metadata)
    with pytest.raises(SourceError, match=f"tiny.gguf: .*{message}"):
        open_checkpoint(path)


def test_factors_of_short_texts_alone_are_refused(tmp_path, write_gguf):
    factors = {"rope_factors_short.weight": np.ones(4, np.float32)}
    path = empty_model(write_gguf, tmp_path / "tiny.gguf", "phi3", tensors=factors)
    with pytest.raises(SourceError, match="one of the tensors rope_factors_long and rope_factors_short; expected both"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("gemma2", "blk.0.attn_q_norm.weight"),
        ("gemma3", "blk.0.post_norm.weight"),
        ("qwen2", "blk.0.attn_k_norm.weight"),
        ("qwen3", "blk.0.post_ffw_norm.weight"),
    ],
)
def test_tensors_that_are_not_known(tmp_path, write_gguf, architecture, name):
    path = empty_model(
        write_gguf,
        tmp_path / "tiny.gguf",
        architecture,
        tensors={name: np.ones(8, np.float32)},
    )
    with pytest.raises(SourceError, match=f"1 tensors are not part of a {architecture}.* model: {re.escape(name)}"):
        open_checkpoint(path)


GPT_OSS = {"gpt-oss.attention.sliding_window": 4, "gpt-oss.expert_count": 2, "gpt-oss.expert_used_count": 1}


def experts(parts, ffn=32):
    shapes = {"gate": (2, ffn, 32), "up": (2, ffn, 32), "down": (2, 32, ffn)}
    blocks = {part: (*shape[:-1], shape[-1] // 32 * 17) for part, shape in shapes.items()}  # of MXFP4
    rng = np.random.default_rng(0)
    arrays = {part: rng.integers(0, 256, blocks[part], dtype=np.uint8) for part in parts}
    for array in arrays.values():
        array[..., ::17] = rng.integers(120, 130, array[..., ::17].shape)  # the exponents of blocks
    return {f"blk.0.ffn_{part}_exps.weight": array for part, array in arrays.items()}


def test_experts_in_four_bits(tmp_path, write_gguf):
    """gpt-oss is written in MXFP4: gate and up take turns, and outputs are behind inputs, as transformers has them."""
    stored, kind = experts(("gate", "up", "down")), gguf.GGMLQuantizationType.MXFP4
    path = empty_model(
        write_gguf, tmp_path / "tiny.gguf", "gpt-oss", stored, raw_types=dict.fromkeys(stored, kind), **GPT_OSS
    )
    tensors, prefix = open_checkpoint(path).tensors, "model.layers.0.mlp.experts"
    gate, up, down = (gguf.dequantize(array, kind) for array in stored.values())
    both = tensors[f"{prefix}.gate_up_proj"]
    assert both.shape == (2, 32, 64)
    np.testing.assert_array_equal(both.load()[..., 0::2], gate.swapaxes(1, 2))
    np.testing.assert_array_equal(both.load()[..., 1::2], up.swapaxes(1, 2))
    np.testing.assert_array_equal(both.read(1, 2), both.load()[1:])
    np.testing.assert_array_equal(tensors[f"{prefix}.down_proj"].load(), down.swapaxes(1, 2))
    assert np.abs(both.load()).max() > 0.1


def test_experts_that_are_not_whole_are_refused(tmp_path, write_gguf):
    kind = gguf.GGMLQuantizationType.MXFP4
    for name, stored, message in (
        ("up.gguf", experts(("gate", "down")), r"has no tensor blk\.0\.ffn_up_exps\.weight"),
        (
            "shape.gguf",
            experts(("gate",)) | experts(("up",), ffn=64),
            r"\(2, 32, 32\) and .* \(2, 64, 32\); expected the",
        ),
    ):
        path = empty_model(
            write_gguf, tmp_path / name, "gpt-oss", stored, raw_types=dict.fromkeys(stored, kind), **GPT_OSS
        )
        with pytest.raises(SourceError, match=message):
            open_checkpoint(path)
