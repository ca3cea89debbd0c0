"""gpt-oss as it is published, in MXFP4: decoded to the numbers that transformers gets, or kept in it under adapters."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from sft_jax.models import AdapterSpec, Decoder, Execution, load_pretrained
from sft_jax.models.loading import decoder_config, load_params, on_one
from sft_jax.models.quantization import dequantized, dequantized_tree, quantize, quantized_tree
from sft_jax.options import options_of
from sft_jax.runs.base import open_base
from sft_jax.runs.metric_log import read_metrics
from sft_jax.sharding import make_mesh, placement
from sft_jax.sources import TensorEntry, open_checkpoint
from sft_jax.sources.mxfp4 import decoded
from sft_jax.sources.tensors import SourceError
from sft_jax.training import run
from sft_jax.training.trained_parameters import check_trained
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
@pytest.mark.parametrize("quantized", ["none", "nf4", "mxfp4"])
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


def kept(root):
    """The parameters in MXFP4, and the same decoded when they were read, in bfloat16."""
    checkpoint = open_checkpoint(root / "model")
    config, one = decoder_config(checkpoint), on_one(jax.devices()[0])
    return [load_params(checkpoint, config, "unrolled", "bfloat16", one, kind) for kind in ("mxfp4", "none")]


def test_experts_stay_in_four_bits(root):
    """As large as in the file; of what they stand for no bit is another, and all else is not quantized."""
    stored, plain = kept(root)
    found, expected = reference.flat(dequantized_tree(stored)), reference.flat(plain)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path].astype(jnp.bfloat16), leaf, err_msg=path)
    few = {path: leaf for path, leaf in reference.flat(stored).items() if "/kernel/" in path}
    stems = {path.rpartition("/")[0] for path in few}
    assert stems == {f"layers_{layer}/experts/{name}/kernel" for layer in (0, 1) for name in ("gate", "up", "down")}
    files = load_file(root / "model" / "model.safetensors")
    in_file = sum(array.nbytes for name, array in files.items() if name.endswith(("_blocks", "_scales")))
    assert sum(leaf.nbytes for leaf in few.values()) == in_file
    assert in_file * 8 == 4.25 * sum(expected[stem].size for stem in stems)


def test_bytes_in_memory_are_those_of_the_file(root):
    """Of the blocks that use their largest values, which is what whoever rounds to MXFP4 sees to."""
    params, files = kept(root)[0], load_file(root / "model" / "model.safetensors")
    for layer in range(2):
        stored, name = (
            params[f"layers_{layer}"]["experts"]["down"]["kernel"],
            f"model.layers.{layer}.mlp.experts.down_proj",
        )
        blocks, scales = files[f"{name}_blocks"], files[f"{name}_scales"]
        full = (np.maximum(blocks & 7, blocks >> 4 & 7).max(axis=-1) >= 6)[..., None]
        assert full.mean() > 0.9
        codes = np.asarray(stored["codes"]).swapaxes(1, 2).reshape(blocks.shape)
        np.testing.assert_array_equal(np.where(full, codes, 0), np.where(full, blocks, 0))
        exponents = np.asarray(stored["exponents"]).swapaxes(1, 2)
        np.testing.assert_array_equal(np.where(full[..., 0], exponents, 0), np.where(full[..., 0], scales, 0))


def test_whatever_is_in_mxfp4_is_encoded_as_it_is():
    """All values, all powers of which the smallest value is a normal number, and blocks without large values."""
    rng = np.random.default_rng(0)
    blocks, scales = rng.integers(0, 256, (1, 251, 8, 16)), np.arange(2, 253)[None, :, None].repeat(8, 2)
    blocks[:, :, 4:] &= 0b10110011  # values up to 1.5
    blocks[:, :, 7] &= 0b10011001  # a half and nothing
    stored = {"w_blocks": entry(blocks.astype(np.uint8)), "w_scales": entry(scales.astype(np.uint8))}
    values = decoded(stored, "made")["w"].load()
    np.testing.assert_array_equal(dequantized(quantize(jnp.asarray(values), "mxfp4")), values.astype(np.float32))


def test_other_weights_are_rounded_to_the_nearest():
    """Against `ml_dtypes`, whose numbers round as the specification says."""
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 96, 40)).astype(np.float32)
    kernel[0, :32, 0] = np.arange(32) / 4  # those between two values too, and those beyond the last
    kernel[1, 32:64, 1] = 0
    blocks = kernel.reshape(3, 3, 32, 40)
    largest = np.abs(blocks).max(axis=2, keepdims=True)
    power = np.exp2(np.floor(np.log2(np.where(largest > 0, largest, 1))) - 2)
    expected = np.clip(blocks / power, -6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32) * power
    stored = quantize(jnp.asarray(kernel), "mxfp4")
    np.testing.assert_array_equal(dequantized(stored), expected.reshape(kernel.shape))
    assert sum(leaf.nbytes for leaf in stored.values()) * 8 == 4.25 * kernel.size


@pytest.mark.parametrize("layout", ["scan", "unrolled"])
def test_the_backward_pass_keeps_four_bits(root, layout):
    """Kernels are decoded again for it: without that, those of all layers would lie in memory at once."""
    model, params = load_pretrained(root / "model", execution=Execution(layer_layout=layout))
    model = Decoder(model.config, model.execution, AdapterSpec("lora"))
    count, width, ffn = model.config.num_experts, model.config.model_dim, model.config.ffn_dim
    ones = {"a": jnp.ones((2, width, 2)), "b": jnp.ones((2, 2, 64)), "scale": jnp.ones((2,))}
    beside = reference.in_layout({"layers": {"attention": {"query": ones}}}, model.layout)

    def kept_shapes(params):
        pull = lambda beside, params: jax.vjp(lambda x: model.apply({"params": params, "adapters": x}, IDS), beside)[1]
        return [leaf.shape[-3:] for leaf in jax.tree.leaves(jax.eval_shape(pull, beside, params))]

    kernels = ((count, width, ffn), (count, ffn, width))
    assert set(kernels) <= set(kept_shapes(params))
    few = kept_shapes(quantized_tree(params, "mxfp4"))
    assert not set(kernels) & set(few)
    assert (count, width // 2, ffn) in few


@pytest.mark.slow
@pytest.mark.parametrize(("method", "expert"), [("lora", 2), ("pissa", 1)])
def test_a_run_in_four_bits_is_the_run_on_decoded_weights(root, tmp_path, method, expert):
    changes = {"adapter.method": method, "adapter.targets": ("attention/.*", "experts/(gate|up|down)")}
    changes |= {"mesh.fsdp": 4 // expert, "mesh.expert": expert, "mesh.tensor": 2}
    losses = {}
    for kind in ("none", "mxfp4"):
        run(tiny.config(root, "lora", **FAST | changes | {"precision.quantized": kind}), tmp_path / kind)
        lines = read_metrics(tmp_path / kind / "metrics.jsonl")
        losses[kind] = [line["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses["none"]) == 3
    assert losses["none"][2] < losses["none"][0]
    np.testing.assert_allclose(losses["mxfp4"], losses["none"], rtol=1e-6)


def test_a_model_without_experts_has_none_in_mxfp4(tmp_path):
    """Refused before anything is read; what is advised passes."""
    config = tiny.config(tmp_path, "lora", **{"precision.quantized": "mxfp4"})
    decoder = open_base(config.model.source).decoder
    with pytest.raises(ValueError, match=r"quantized=mxfp4: this model has no experts, .* give nf4 or int8"):
        check_trained(options_of(config), decoder)
    for kind in ("nf4", "int8"):
        config.precision.quantized = kind
        check_trained(options_of(config), decoder)
    with pytest.raises(ValueError, match="blocks of 32 inputs; a kernel has 48"):
        quantize(jnp.zeros((48, 8)), "mxfp4")


@pytest.mark.slow
@pytest.mark.parametrize("quantized", ["none", "mxfp4"])
def test_a_run_is_exported_as_plain_weights(root, tmp_path, quantized):
    """Adapters of attention and experts, merged."""
    changes = {"adapter.targets": ("attention/.*", "experts/(gate|up|down)"), "precision.quantized": quantized}
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
