"""gpt-oss as it is published, in MXFP4: decoded to the numbers that transformers gets, trained and exported."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from sft_jax.models import load_pretrained
from sft_jax.models.loading import decoder_config, load_params, on_one
from sft_jax.sharding import make_mesh, placement
from sft_jax.sources import TensorEntry, open_checkpoint
from sft_jax.sources.mxfp4 import decoded
from sft_jax.sources.tensors import SourceError
from sft_jax.training import run
from tests import tiny
from tests.exports.conftest import FAST, export
from tests.exports.test_model import IDS, our_logits
from tests.models import families, reference

EXPERTS = ("gate_up_proj", "down_proj")
SETTINGS = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}


def entry(array):
    return TensorEntry(array.shape, array.dtype, lambda start, stop: array[start:stop])


def packed(shape, seed=0):
    """Random blocks and scales of a weight [experts, out, in]; the values are about 0.3."""
    rng, (experts, outputs, inputs) = np.random.default_rng(seed), shape
    blocks = rng.integers(0, 256, (experts, outputs, inputs // 32, 16)).astype(np.uint8)
    return blocks, rng.integers(122, 126, (experts, outputs, inputs // 32)).astype(np.uint8)


def write_mxfp4(directory):
    """A random model of two layers in MXFP4, as published files are."""
    fields = families.hf_config("gpt_oss") | {"intermediate_size": 64, "num_hidden_layers": 2}
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    families.save(families.random_model(config), directory)
    tensors = load_file(directory / "model.safetensors")
    for number, name in enumerate([name for name in tensors if name.endswith(EXPERTS)]):
        experts, inputs, outputs = tensors.pop(name).shape
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = packed((experts, outputs, inputs), number)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    saved = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(saved | {"quantization_config": SETTINGS}))
    return directory


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """`model/` in MXFP4, with a tokenizer and rows beside it."""
    root = tmp_path_factory.mktemp("mxfp4")
    tiny.tokenizer().save_pretrained(write_mxfp4(root / "model"))
    tiny.write_rows(root / "train.jsonl", 24)
    tiny.write_rows(root / "held_out.jsonl", 8, seed=1)
    return root


def in_torch(directory):
    auto = transformers.AutoModelForCausalLM
    return auto.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def test_a_block_by_hand():
    """The lower bits of a byte come first; 129 is a factor of 4."""
    blocks, scales = np.zeros((1, 1, 1, 16), np.uint8), np.full((1, 1, 1), 129, np.uint8)
    blocks[0, 0, 0, :4] = [0x10, 0x32, 0x54, 0xF7]
    found = decoded({"w_blocks": entry(blocks), "w_scales": entry(scales)}, "made")["w"].load()
    assert found.shape == (1, 32, 1)
    assert found.ravel()[:9].astype(np.float32).tolist() == [0, 2, 4, 6, 8, 12, 24, -24, 0]


@pytest.mark.parametrize("span", [(0, 3), (1, 2)])
def test_every_value_is_that_of_transformers(span):
    """All bytes, and scales from the smallest to the largest that gives numbers of bfloat16."""
    rng = np.random.default_rng(0)
    blocks = np.arange(3 * 8 * 2 * 16).reshape(3, 8, 2, 16).astype(np.uint8)
    scales = rng.integers(0, 253, (3, 8, 2)).astype(np.uint8)
    scales[0, 0], scales[1, 0] = 0, 252
    expected = convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(scales), dtype=torch.float32)
    made = decoded({"w_blocks": entry(blocks), "w_scales": entry(scales)}, "made")["w"]
    assert made.shape == tuple(expected.shape)
    found = made.read(*span)
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found.astype(np.float32), expected.numpy()[slice(*span)])


def test_the_model_is_that_of_transformers(root):
    model, params = load_pretrained(root / "model")
    expected = families.torch_logits(in_torch(root / "model"), IDS)
    assert expected.std() > 0.5
    np.testing.assert_allclose(reference.logits_of(model, params, IDS), expected, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("quantized", ["none", "nf4"])
def test_a_mesh_holds_the_numbers_of_one_device(root, quantized):
    checkpoint = open_checkpoint(root / "model")
    config = decoder_config(checkpoint)
    plain = reference.flat(load_params(checkpoint, config, "scan", "float32", on_one(jax.devices()[0]), quantized))
    mesh = make_mesh({"fsdp": 2, "expert": 2, "tensor": 2}, jax.devices())
    found = reference.flat(load_params(checkpoint, config, "scan", "float32", placement(mesh), quantized))
    assert found.keys() == plain.keys()
    for path, leaf in plain.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def test_random_weights_of_its_config(root):
    model, params = load_pretrained(f"random:{root / 'model'}?num_hidden_layers=1")
    assert np.isfinite(reference.logits_of(model, params, IDS)).all()


def test_experts_are_read_one_by_one(root):
    """Blocks and scales of an expert once, although gate and up are of the same tensor."""
    checkpoint, spans = open_checkpoint(root / "model"), []
    for name, stored in checkpoint.tensors.items():
        if name.endswith(EXPERTS):

            def read(start, stop, name=name, stored=stored):
                spans.append((name, start, stop))
                return stored.read(start, stop)

            checkpoint.tensors[name] = TensorEntry(stored.shape, stored.dtype, read)
    load_params(checkpoint, decoder_config(checkpoint), "scan", "bfloat16", on_one(jax.devices()[0]))
    names = [name for name in checkpoint.tensors if name.endswith(EXPERTS)]
    assert sorted(spans) == sorted((name, expert, expert + 1) for name in names for expert in range(4))


@pytest.mark.slow
def test_a_run_is_exported_as_plain_weights(root, tmp_path):
    """Adapters of attention and experts, merged."""
    changes = {"adapter.targets": ("attention/.*", "experts/(gate|up|down)")}
    run(tiny.config(root, "lora", **FAST, **changes), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    expected = our_logits(tmp_path / "run")
    np.testing.assert_allclose(families.torch_logits(in_torch(tmp_path / "out"), IDS), expected, atol=1e-4)
    assert np.abs(expected - our_logits(root / "model")).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w_scales": None}, "w_scales is missing, without which w cannot be decoded"),
        ({"w_blocks": None}, "w_blocks is missing"),
        ({"w": np.zeros((2, 32, 4), np.float32)}, "w is there as it is and in MXFP4"),
        ({"w_scales": np.zeros((2, 4, 1), np.int8)}, "w_scales holds int8; expected uint8"),
        ({"w_scales": np.zeros((2, 4, 2), np.uint8)}, r"\(2, 4, 1, 16\) and w_scales \(2, 4, 2\); expected"),
        ({"w_scales": np.full((2, 4, 1), 255, np.uint8)}, "w_scales holds 255; expected at most 252"),
    ],
)
def test_what_is_damaged_is_refused(changes, message):
    blocks, scales = packed((2, 4, 32))
    arrays = {"w_blocks": blocks, "w_scales": scales} | changes
    with pytest.raises(SourceError, match=f"made: .*{message}"):
        decoded({name: entry(array) for name, array in arrays.items() if array is not None}, "made")["w"].load()
