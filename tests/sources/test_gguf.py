"""GGUF files: the real SmolLM2, tiny ones written here, and damaged or foreign ones."""

import re

import gguf
import numpy as np
import pytest
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from sft_jax.sources import SourceError, open_checkpoint
from sft_jax.sources.gguf_layouts import undo_rope_permutation
from sft_jax.sources.locate import locate
from tests import work

SHORT_NAME = "smollm2-135m-instruct"


def permute(weight, num_heads):
    """What llama.cpp's converter does to query and key projections."""
    half = weight.shape[0] // num_heads // 2
    return weight.reshape(num_heads, 2, half, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


@pytest.mark.parametrize(
    ("rows", "num_heads", "expected"),
    [
        ([0, 2, 1, 3], 1, [0, 1, 2, 3]),
        ([0, 2, 1, 3, 4, 6, 5, 7], 2, [0, 1, 2, 3, 4, 5, 6, 7]),
        ([0, 3, 1, 4, 2, 5], 1, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_undo_rope_permutation(rows, num_heads, expected):
    weight = np.array(rows, np.float32)
    np.testing.assert_array_equal(undo_rope_permutation(weight, num_heads), expected)
    np.testing.assert_array_equal(undo_rope_permutation(weight[:, None], num_heads)[:, 0], expected)


def test_real_file_config_and_work():
    with work.at_most(10_000_000):  # 3,400,000 were taken: 49,152 tokens and as many merges are among the metadata
        checkpoint = open_checkpoint(SHORT_NAME)
        num_weights = sum(entry.load().size for entry in checkpoint.tensors.values())
    assert num_weights == 134_515_008
    assert checkpoint.name == SHORT_NAME
    assert checkpoint.location.endswith(".gguf")
    expected = {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert {key: checkpoint.config[key] for key in expected} == expected
    assert len(checkpoint.tensors) == 2 + 30 * 9


@pytest.mark.slow
def test_real_file_equals_transformers_reader():
    path = locate(SHORT_NAME).path
    theirs = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name).state_dict()
    tensors = open_checkpoint(SHORT_NAME).tensors
    assert set(theirs) - set(tensors) == {"lm_head.weight"}  # tied
    assert not set(tensors) - set(theirs)
    for name, entry in tensors.items():
        np.testing.assert_array_equal(entry.load(), theirs[name].float().numpy(), err_msg=name)


def test_tiny_file(tmp_path, write_gguf, llama_arrays):
    head, bias = np.ones((48, 32), np.float32), np.arange(16, dtype=np.float32)
    stored = llama_arrays | {
        "blk.0.attn_q.weight": permute(llama_arrays["blk.0.attn_q.weight"], 4),
        "blk.0.attn_k.weight": permute(llama_arrays["blk.0.attn_k.weight"], 2),
        "blk.0.attn_k.bias": permute(bias, 2),
        "output.weight": head,
    }
    checkpoint = open_checkpoint(write_gguf(tmp_path / "tiny.gguf", stored))
    layer = "model.layers.0."
    expected = {
        "model.embed_tokens.weight": llama_arrays["token_embd.weight"],
        "model.norm.weight": llama_arrays["output_norm.weight"],
        "lm_head.weight": head,
        layer + "input_layernorm.weight": llama_arrays["blk.0.attn_norm.weight"],
        layer + "self_attn.q_proj.weight": llama_arrays["blk.0.attn_q.weight"],
        layer + "self_attn.k_proj.weight": llama_arrays["blk.0.attn_k.weight"],
        layer + "self_attn.k_proj.bias": bias,
        layer + "self_attn.v_proj.weight": llama_arrays["blk.0.attn_v.weight"],
        layer + "self_attn.o_proj.weight": llama_arrays["blk.0.attn_output.weight"],
        layer + "post_attention_layernorm.weight": llama_arrays["blk.0.ffn_norm.weight"],
        layer + "mlp.gate_proj.weight": llama_arrays["blk.0.ffn_gate.weight"],
        layer + "mlp.up_proj.weight": llama_arrays["blk.0.ffn_up.weight"],
        layer + "mlp.down_proj.weight": llama_arrays["blk.0.ffn_down.weight"],
    }
    assert checkpoint.tensors.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(checkpoint.tensors[name].load(), array, err_msg=name)
    assert checkpoint.config["tie_word_embeddings"] is False
    assert checkpoint.config["attention_bias"] is True
    assert checkpoint.config["head_dim"] == 8


QUANTIZATIONS = (
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
)
# Where the float16 scales of a block lie. The gguf library has no quantizer for these types.
SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


def quantized(kind, shape, rng):
    """Rows of blocks of a quantization type: of normal numbers, or for the K types random bits under small scales."""
    if kind.name not in SCALES:
        return gguf.quantize(rng.normal(size=shape).astype(np.float32), kind)
    size, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (np.prod(shape) // size, num_bytes), dtype=np.uint8)
    for offset in SCALES[kind.name]:
        scales = rng.uniform(5e-4, 5e-3, (len(blocks), 1)).astype("<f2")
        blocks[:, offset : offset + 2] = scales.view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_quantization_types(tmp_path, write_gguf, llama_arrays, kind):
    """Every matrix in one type, as gguf dequantizes it and as transformers reads the file."""
    kind, rng = gguf.GGMLQuantizationType[kind], np.random.default_rng(0)
    shapes = {name: tuple(256 if size == 32 else size for size in array.shape) for name, array in llama_arrays.items()}
    shapes["blk.0.attn_k.weight"] = shapes["blk.0.attn_v.weight"] = (128, 256)
    shapes["blk.0.ffn_down.weight"] = (256, 256)
    shapes["blk.0.ffn_gate.weight"] = shapes["blk.0.ffn_up.weight"] = (256, 256)
    stored = {name: quantized(kind, shape, rng) for name, shape in shapes.items() if len(shape) == 2}
    norms = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items() if len(shape) == 1}
    metadata = {"llama.embedding_length": 256, "llama.feed_forward_length": 256, "llama.vocab_size": 48}
    path = write_gguf(tmp_path / "tiny.gguf", norms | stored, metadata, raw_types=dict.fromkeys(stored, kind))
    ours = open_checkpoint(path).tensors
    for label, name in (("mlp.down_proj", "ffn_down"), ("self_attn.v_proj", "attn_v")):
        loaded = ours[f"model.layers.0.{label}.weight"].load()
        assert loaded.dtype == np.float32
        assert 0.01 < np.abs(loaded).mean() < 5
        np.testing.assert_array_equal(loaded, gguf.dequantize(stored[f"blk.0.{name}.weight"], kind))
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype="float32").state_dict()
    assert theirs.keys() - {"lm_head.weight"} == ours.keys()
    for name, entry in ours.items():
        np.testing.assert_array_equal(entry.load(), theirs[name].numpy(), err_msg=name)


def test_defaults_of_absent_keys(tmp_path, write_gguf, llama_arrays):
    arrays = llama_arrays | {"blk.0.attn_k.weight": llama_arrays["blk.0.attn_q.weight"]}
    absent = {"llama.attention.head_count_kv": None, "llama.rope.freq_base": None}
    config = open_checkpoint(write_gguf(tmp_path / "tiny.gguf", arrays, absent)).config
    assert (config["num_key_value_heads"], config["rope_theta"]) == (4, 10000.0)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_rope_scaling(tmp_path, write_gguf, llama_arrays, factor):
    """The divisors are those by which transformers changes its frequencies."""
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    parameters = {"hidden_size": 512, "num_attention_heads": 4, "head_dim": 128}
    config = LlamaConfig(**parameters, rope_parameters=scaling | {"rope_theta": 500000.0})
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")
    plain = 500000.0 ** -(np.arange(0, 128, 2) / 128)
    arrays = {name: array for name, array in llama_arrays.items() if "attn_q" not in name and "attn_k" not in name}
    metadata = {
        "llama.attention.head_count": 4,
        "llama.embedding_length": 512,
        "llama.rope.freq_base": 500000.0,
    }
    divisors = (plain / scaled.numpy()).astype(np.float32)
    path = write_gguf(tmp_path / "tiny.gguf", arrays | {"rope_freqs.weight": divisors}, metadata)
    assert open_checkpoint(path).config["rope_scaling"] == pytest.approx(scaling)
    divisors[40] *= 1.01
    path = write_gguf(tmp_path / "other.gguf", arrays | {"rope_freqs.weight": divisors}, metadata)
    with pytest.raises(SourceError, match=r"the tensor rope_freqs.weight is not the rope scaling of Llama 3.1"):
        open_checkpoint(path)


@pytest.mark.parametrize("kind", ["linear", None])  # a factor without a type is linear
def test_linear_rope_scaling(tmp_path, write_gguf, llama_arrays, kind):
    metadata = {"llama.rope.scaling.type": kind, "llama.rope.scaling.factor": 4.0}
    config = open_checkpoint(write_gguf(tmp_path / "tiny.gguf", llama_arrays, metadata)).config
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.rope.scaling.type": "longrope"}, r"scaling.type is 'longrope'; supported are none, linear and yarn"),
        ({"llama.rope.scaling.type": "yarn"}, r"has no metadata 'llama.rope.scaling.factor'"),
        ({"llama.rope.scaling.yarn_attn_factor": 2.0}, r"not supported: llama.rope.scaling.yarn_attn_factor = 2.0"),
        ({"llama.expert_count": 8}, r"mixture of experts"),
        ({"llama.logit_scale": 2.0}, r"features that are not supported: llama.logit_scale = 2.0"),
        ({"llama.embedding_length": None}, r"has no metadata 'llama.embedding_length'"),
        ({"llama.attention.head_count": [4, 2]}, r"llama.attention.head_count is \[4, 2\]; expected one whole number"),
        ({"llama.attention.head_count_kv": 4}, r"blk.0.attn_k.weight has 16 rows; expected 4 heads x 8"),
        ({"llama.rope.dimension_count": 4}, r"llama.rope.dimension_count is 4; expected the head dimension 8"),
        ({"llama.vocab_size": 49}, r"llama.vocab_size is 49, but token_embd.weight has 48 rows"),
        ({"split.count": 2}, r"one part of a split GGUF file. Join the parts"),
    ],
)
def test_metadata_that_is_refused(tmp_path, write_gguf, llama_arrays, metadata, message):
    path = write_gguf(tmp_path / "tiny.gguf", llama_arrays, metadata)
    with pytest.raises(SourceError, match=f"{re.escape(str(path))}: .*{message}"):
        open_checkpoint(path)


def test_other_architecture(tmp_path, write_gguf, llama_arrays):
    path = write_gguf(tmp_path / "tiny.gguf", llama_arrays, architecture="mamba")
    with pytest.raises(
        SourceError, match=r"architecture 'mamba'; GGUF files of llama, .* are supported. Use .*safetensors"
    ):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["blk.0.attn_q_norm.weight", "blk.0.output.weight", "attn_q.weight", "v.patch.weight"])
def test_tensors_that_are_not_known(tmp_path, write_gguf, llama_arrays, name):
    path = write_gguf(tmp_path / "tiny.gguf", llama_arrays | {name: np.ones((8,), np.float32)})
    with pytest.raises(SourceError, match=f"1 tensors are not part of a llama model: {re.escape(name)}"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-10], r"the file is truncated: it has \d+ bytes and 'blk.0.\S+' would end at"),
        (lambda content: content[:200], r"the header is truncated or damaged \(after byte \d+ of 200"),
        (lambda content: b"", r"the header is truncated or damaged"),
        (lambda content: b"GGML" + content[4:], r"is not a GGUF file"),
        (lambda content: content[:4] + b"\0\0\0\3" + content[8:], r"has GGUF version 50331648; little-endian"),
        (lambda content: content[:24] + b"\xff" * 8 + content[32:], r"the header is truncated or damaged"),
    ],
)
def test_damaged_files(tmp_path, write_gguf, llama_arrays, damage, message):
    path = write_gguf(tmp_path / "tiny.gguf", llama_arrays)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SourceError, match=message):
        open_checkpoint(path)
