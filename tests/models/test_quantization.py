"""Kernels in few bits: the numbers, their size, and that the model computes with what it stores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from sft_jax.models import AdapterSpec, Decoder, Execution, load_pretrained
from sft_jax.models.layouts import to_layout
from sft_jax.models.quantization import NF4, dequantized, dequantized_tree, quantize, quantized_tree
from sft_jax.runs.base import open_base
from sft_jax.runs.metric_log import read_metrics
from sft_jax.runs.restore import load_for_inference
from sft_jax.sharding import inference_mesh
from sft_jax.training import run
from tests import tiny
from tests.models import families, reference

quantized, rounded_tree = reference.jit(quantized_tree, static_argnums=1), reference.jit(dequantized_tree)
KERNEL = np.random.default_rng(0).standard_normal((2, 150, 300)).astype(np.float32)  # neither 64 nor 256 divides it


def test_nf4_is_the_quantiles_of_a_normal_distribution():
    """QLoRA, appendix E: 8 quantiles above zero, 7 below, and zero, scaled to [-1, 1]."""
    offset = 0.9677083
    above, below = (norm.ppf(np.linspace(offset, 0.5, count)[:-1]) for count in (9, 8))
    values = np.sort([*above, 0.0, *-below])
    np.testing.assert_allclose(NF4, values / values.max(), atol=1e-6)


def test_int8_is_rounded_to_127ths_of_a_column():
    stored = quantize(jnp.asarray(KERNEL), "int8")
    scale = np.abs(KERNEL).max(axis=1, keepdims=True) / 127
    np.testing.assert_array_equal(stored["values"], np.round(KERNEL / scale))
    assert np.abs(dequantized(stored) - KERNEL).max() <= scale.max() / 2 * 1.0001


def test_nf4_is_the_nearest_value_of_a_block():
    """By brute force; the scales of blocks are within 1/254 of the largest distance from their mean."""
    stored, found = quantize(jnp.asarray(KERNEL), "nf4"), None
    found = np.asarray(dequantized(stored))
    for matrix, kernel in zip(found, KERNEL, strict=True):
        for start in range(0, 150, 64):
            block, values = kernel[start : start + 64], matrix[start : start + 64]
            largest = np.abs(block).max(axis=0)
            assert np.abs(np.abs(values).max(axis=0) - largest).max() < 0.03
            scale = np.abs(values).max(axis=0)  # as it is read: the largest weight of a block is 1 or -1 of it
            nearest = NF4[np.abs((block / scale)[..., None] - NF4).argmin(-1)] * scale
            assert (np.abs(nearest - values) < 1e-5).mean() > 0.999


@pytest.mark.parametrize(("kind", "bits", "error"), [("int8", 8.02, 0.01), ("nf4", 4.13, 0.1)])
def test_size_and_error(kind, bits, error):
    kernel = jnp.asarray(np.random.default_rng(1).standard_normal((2048, 1024)), jnp.float32)
    stored = quantize(kernel, kind)
    assert sum(leaf.nbytes for leaf in stored.values()) * 8 / kernel.size == pytest.approx(bits, abs=0.01)
    assert reference.relative(dequantized(stored), kernel) < error


def test_zeros_and_odd_kernels():
    for kind in ("int8", "nf4"):
        np.testing.assert_array_equal(dequantized(quantize(jnp.zeros((64, 8)), kind)), 0.0)
    with pytest.raises(ValueError, match=r"a kernel has 5\. Use int8"):
        quantize(jnp.zeros((5, 8)), "nf4")


@pytest.fixture(scope="module", params=["llama", "mixtral"])
def directory(request, tmp_path_factory):
    made = families.save(families.torch_model(request.param), tmp_path_factory.mktemp("quantized"))
    tiny.tokenizer().save_pretrained(made)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("layout", ["scan", "unrolled"])
def test_the_model_computes_with_what_it_stores(directory, kind, layout):
    """Logits, and gradients of adapters, are those of the dequantized model, which is not the base model."""
    model, params = load_pretrained(directory, execution=Execution(layer_layout=layout))
    stored, ids = quantized(params, kind), reference.tokens(2, 12)
    rounded = rounded_tree(stored)
    expected = reference.logits_of(model, rounded, ids)
    np.testing.assert_allclose(reference.logits_of(model, stored, ids), expected, atol=1e-4)
    assert np.abs(reference.logits_of(model, params, ids) - expected).max() > 1e-3
    model = Decoder(model.config, model.execution, AdapterSpec("lora"))
    ones = {"a": (0.1, (32, 2)), "b": (0.1, (2, 32)), "scale": (1.0, ())}
    layers = {"attention": {"query": {name: jnp.full((2, *s), v) for name, (v, s) in ones.items()}}}
    adapters = to_layout({"layers": layers}, layout)

    loss = lambda tree, params: jnp.sum(model.apply({"params": params, "adapters": tree}, ids) ** 2)
    gradient = reference.jit(jax.grad(loss))
    ours, theirs = (reference.flat(gradient(adapters, params)) for params in (stored, rounded))
    assert all(reference.relative(ours[path], theirs[path]) < 1e-4 for path in theirs)


@pytest.mark.slow
def test_a_run_on_a_quantized_base(directory, tmp_path):
    """On a mesh; tensors are quantized one by one as they are read, and the result is used on the same base."""
    kind = "nf4" if "experts" in (directory / "config.json").read_text() else "int8"
    changes = {"precision.quantized": kind, "model.source": str(directory), "mesh.tensor": 2, "mesh.fsdp": 4}
    config = tiny.config(tmp_path, "lora", duration="2 steps", **changes)
    run(config, tmp_path / "run")
    losses = [line["train/loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "train/loss" in line]
    assert np.isfinite(losses).all()
    mesh = inference_mesh(jax.devices())
    read = reference.flat(open_base(str(directory)).params("scan", "float32", mesh, kind))
    whole = reference.flat(quantized(load_pretrained(directory)[1], kind))
    assert read.keys() == whole.keys()
    for path, leaf in whole.items():
        np.testing.assert_allclose(np.asarray(read[path], np.float32), np.asarray(leaf, np.float32), atol=1.0)
        assert read[path].dtype == leaf.dtype
    ids = reference.tokens(1, 8)
    with jax.set_mesh(mesh):
        loaded = load_for_inference(str(tmp_path / "run"), mesh, "float32")
        adapted = reference.apply(loaded.model, loaded.variables, ids)
        merged = {"params": open_base(str(tmp_path / "run")).params("unrolled", "float32", mesh)}
        together = reference.apply(loaded.model.clone(adapter=None), merged, ids)
    np.testing.assert_allclose(together, adapted, atol=1e-3)


def test_only_frozen_weights_are_quantized(tmp_path):
    with pytest.raises(ValueError, match=r"precision\.quantized=int8 is for frozen weights under an adapter"):
        run(tiny.config(tmp_path, "full", **{"precision.quantized": "int8"}), tmp_path / "run")
