"""Gradients of layers' kernels in bfloat16: rounded once, as they leave the product, and never float32 arrays again."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from sft_jax.models import probes
from sft_jax.models.config import Execution
from sft_jax.models.variables import is_kernel_of_layer
from sft_jax.sharding import put_batch
from sft_jax.training.step import gradients
from tests.models import programs
from tests.training.test_invariance import batch_of, build, measure, mesh
from tests.training.three_models import write_three_models

PRODUCTS = {"precision.matmul": "bfloat16", "precision.activations": "bfloat16"}
ROUNDED = {"precision.gradients": "bfloat16"}
# Of the norm of a gradient: that of rounding each entry to 8 bits. On several devices each rounds its part, and sums.
ONCE, PARTS = 2.0**-8, 2.0**-6
MIXTURE = "mixture"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    made = tmp_path_factory.mktemp("gradient_dtype")
    write_three_models(made)
    return made


@pytest.fixture(scope="module")
def measured(root):
    """(metrics, gradients) of a case, by model and overrides."""

    @functools.cache
    def of(model="full", arg="full", **overrides):
        built = build(root, arg, model, **PRODUCTS, **overrides)
        return measure(built, batch_of(built))

    return of


def assert_near(found: dict, expected: dict, share: float) -> None:
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        norm = np.linalg.norm(leaf)
        assert norm > 1e-4, f"{path}: this gradient shows nothing"
        assert np.linalg.norm(found[path] - leaf) <= share * norm, path


@pytest.mark.parametrize("layout", ["scan", "unrolled"])
@pytest.mark.parametrize("model", ["full", pytest.param(MIXTURE, marks=pytest.mark.slow)])
def test_each_gradient_of_a_kernel_is_the_rounded_one(measured, model, layout):
    """On one device no other number changes: loss and all other gradients are the same bits."""
    expected_metrics, expected = measured(model, **{"execution.layer_layout": layout})
    metrics, found = measured(model, **ROUNDED, **{"execution.layer_layout": layout})
    jax.tree.map(np.testing.assert_array_equal, metrics, expected_metrics)
    count = np.float32(metrics["loss"][1])
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert np.linalg.norm(leaf) > 1e-4, f"{path}: this gradient shows nothing"
        if is_kernel_of_layer(path):
            of_sum = np.asarray(jnp.asarray(leaf * count).astype(jnp.bfloat16), np.float32)
            np.testing.assert_allclose(found[path] * count, of_sum, rtol=2**-7, atol=1e-30, err_msg=path)
            narrow = np.asarray(jnp.asarray(found[path] * count).astype(jnp.bfloat16), np.float32)
            np.testing.assert_allclose(found[path] * count, narrow, rtol=1e-6, err_msg=path)
            assert not np.array_equal(found[path], leaf), path
        else:
            np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def test_stacked_layers_have_the_gradients_of_layers_one_by_one(measured):
    scanned, unrolled = (
        measured(**ROUNDED, **{"execution.layer_layout": layout})[1] for layout in ("scan", "unrolled")
    )
    assert_near(scanned, unrolled, PARTS)


CASES = {
    "untied": ("lora", {}),
    "remat full": ("full", {"execution.remat": "full"}),
    "remat products, unrolled": ("full", {"execution.remat": "products", "execution.layer_layout": "unrolled"}),
    "2 micro-batches": ("full", {"batch.micro_batches": 2}),
    "replica 2, fsdp 2, tensor 2": ("full", mesh(2, 2, 2)),
    "fsdp 4, context 2": ("full", mesh(fsdp=4, context=2)),
    "experts, replica 2, expert 2, tensor 2": (MIXTURE, mesh(2, 1, 2, expert=2)),
    "experts, replica 2, expert 2, context 2": (MIXTURE, mesh(2, expert=2, context=2)),
    "experts with a bound": (MIXTURE, {"experts.capacity": 1.0} | mesh(fsdp=2, expert=2)),
    "matrices stored in bfloat16": ("full", {"precision.params": "bfloat16"}),
    "some kernels alone": ("full", {"trained.weights": (".*/(query|down)/kernel",)}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_float32(measured, case):
    """Up to rounding, wherever kernels lie and however layers are computed. `untied` has a head of its own."""
    model, overrides = CASES[case]
    metrics, found = measured(model, **ROUNDED, **overrides)
    expected_metrics, expected = measured(model, **overrides)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), metrics, expected_metrics)
    assert_near(found, expected, PARTS)
    assert any(not np.array_equal(found[path], expected[path]) for path in found)


def gradient_program(built):
    """Equations of the gradient on one device."""
    batch = put_batch(batch_of(built), built.mesh)
    of = functools.partial(gradients, built.model, built.settings, constrain=lambda tree: tree)
    with jax.set_mesh(built.mesh):
        return programs.equations(of, built.state, batch)


@pytest.mark.parametrize("gradient", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", ["full", MIXTURE])
def test_loops_over_layers_give_stacked_gradients_in_their_dtype(root, model, gradient):
    built = build(root, "full", model, **PRODUCTS, **{"precision.gradients": gradient, "execution.remat": "full"})
    flat = flatten_dict(built.state.trained, sep="/")
    kernels = {leaf.shape for path, leaf in flat.items() if is_kernel_of_layer(path)}
    loops = [each for each in gradient_program(built) if each.primitive.name == "scan"]
    stacked = [out.aval for each in loops for out in each.outvars if out.aval.shape in kernels]
    assert len(stacked) == sum(is_kernel_of_layer(path) for path in flat)
    assert {str(aval.dtype) for aval in stacked} == {gradient}


def test_no_probe_lies_in_memory(root):
    """Of bfloat16 arrays like stacked kernels the compiled program has the gradients that the backward loop fills."""
    built = build(root, "full", **PRODUCTS, **ROUNDED, **{"execution.remat": "full"})
    of = functools.partial(gradients, built.model, built.settings, constrain=lambda tree: tree)
    with jax.set_mesh(built.mesh):
        text = jax.jit(of).lower(built.state, put_batch(batch_of(built), built.mesh)).compile().as_text()
    kernels = probes.with_probes(built.state.trained, built.model.execution)[1]
    shapes = {f"bf16[{','.join(map(str, leaf.shape))}]" for leaf in jax.tree.leaves(kernels)}
    loops = [line for line in text.splitlines() if " while(" in line]
    assert [sum(shape in line for line in loops) for shape in shapes] == [1] * len(shapes)


def test_what_has_no_product_in_bfloat16_has_no_probe(root):
    """Norms, embedding, head, routers; adapters; and what is frozen, under them or beside trained layers."""
    built = build(root, "full", MIXTURE, **PRODUCTS, **ROUNDED)
    differentiated, kernels = probes.with_probes(built.state.trained, built.model.execution)
    paths = {path.rpartition("/")[0] for path in flatten_dict(kernels["params"], sep="/")}
    attention = {f"layers/attention/{name}" for name in ("query", "key", "value", "out")}
    assert paths == attention | {f"layers/experts/{name}" for name in ("gate", "up", "down")}
    described = lambda tree: {path: leaf.shape for path, leaf in flatten_dict(tree, sep="/").items()}
    assert described(differentiated[probes.COLLECTION]) == described(kernels["params"])
    adapted = build(root, "lora", **PRODUCTS, **ROUNDED)
    assert probes.with_probes(adapted.state.trained, adapted.model.execution) == (adapted.state.trained, {})
    last = build(
        root, "full", **PRODUCTS, **ROUNDED, **{"trained.last_layers": 1, "execution.layer_layout": "unrolled"}
    )
    differentiated, _ = probes.with_probes(last.state.trained, last.model.execution)
    assert differentiated[probes.COLLECTION].keys() == {"layers_1"}


@pytest.mark.parametrize("change", [{"gradient_dtype": "float32"}, {"gathers_weights": False}])
def test_without_products_in_bfloat16_there_are_no_probes(change):
    execution = dataclasses.replace(Execution(gradient_dtype="bfloat16", gathers_weights=True), **change)
    trained = {"params": {"layers": {"ffn": {"up": {"kernel": jnp.ones((2, 4, 4))}}}}}
    assert probes.with_probes(trained, execution) == (trained, {})
