"""Mixtures of experts: bounds, the balance loss against transformers, and meshes with an axis of experts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType, NamedSharding
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from sft_jax.models import Decoder, Execution, load_pretrained
from sft_jax.models.experts import ROUTING, _places, _weight_specs, total_routing
from sft_jax.models.matmul import grouped_matmul
from sft_jax.models.partitioning import MESH_AXES, spec_of
from sft_jax.objectives.balance import balance_loss
from sft_jax.sharding import make_mesh, path_string
from tests.models import families, programs, reference

SEQUENCES, LENGTH = 2, 24


@pytest.fixture(scope="module", params=["mixtral", "gpt_oss"])
def mixture(request, tmp_path_factory):
    """(torch model, directory): four experts, of which a token takes two; with biases, and without."""
    model = families.torch_model(request.param)
    return model, families.save(model, tmp_path_factory.mktemp("mixture"))


@pytest.mark.parametrize("sizes", [[3, 0, 4, 1], [8, 0, 0, 0], [0, 0, 0, 0], [2, 2, 1, 0]])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_grouped_product_is_one_product_a_group(sizes, dtype):
    """Values and gradients, at the matmul dtype's precision; rows behind the last group give and get nothing."""
    rng = np.random.default_rng(0)
    x, weights, cotangent = (rng.standard_normal(shape).astype(np.float32) for shape in ((8, 5), (4, 5, 6), (8, 6)))
    rounded = [np.asarray(jnp.asarray(a).astype(dtype).astype(jnp.float32)) for a in (x, weights, cotangent)]
    ends = np.cumsum(sizes)
    out, dx, dw = np.zeros((8, 6)), np.zeros((8, 5)), np.zeros((4, 5, 6))
    for group, (start, end) in enumerate(zip(ends - sizes, ends, strict=True)):
        out[start:end] = rounded[0][start:end] @ rounded[1][group]
        dx[start:end] = rounded[2][start:end] @ rounded[1][group].T
        dw[group] = rounded[0][start:end].T @ rounded[2][start:end]
    function = lambda x, w: grouped_matmul(x, w, jnp.asarray(sizes, jnp.int32), dtype, "float32")
    found, pull = jax.vjp(function, jnp.asarray(x), jnp.asarray(weights))
    for ours, theirs in zip((found, *pull(jnp.asarray(cotangent))), (out, dx, dw), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_grouped_product_multiplies_in_the_product_dtype():
    x, w, sizes = jnp.ones((4, 3)), jnp.ones((2, 3, 5)), jnp.asarray([2, 2], jnp.int32)
    loss = lambda x, w: jnp.sum(grouped_matmul(x, w, sizes, "bfloat16", "float32"))
    kinds = {
        tuple(str(v.aval.dtype) for v in (*e.invars[:2], e.outvars[0]))
        for e in programs.equations(jax.grad(loss, (0, 1)), x, w)
        if e.primitive.name.startswith("ragged_dot")
    }
    assert kinds == {("bfloat16", "bfloat16", "float32")}


def test_places_are_given_to_first_choices_and_earlier_tokens_first():
    """Token:  0      1      2 (padding)  3
    choices:   (0,1)  (0,2)  (0,1)        (1,0)
    Expert 0 gets tokens 0, 1, then 3's second choice; expert 1 gets 3, then 0's second choice."""
    chosen = jnp.asarray([[[0, 1], [0, 2], [0, 1], [1, 0]]])
    used = jnp.asarray([[True, True, False, True]])
    found = np.asarray(_places(chosen, used, 3))[0]
    assert found[[0, 1, 3]].tolist() == [[0, 1], [1, 0], [0, 2]]


def bounded(model: Decoder, capacity: float) -> Decoder:
    return model.clone(config=dataclasses.replace(model.config, expert_capacity=capacity))


def test_a_bound_that_nobody_reaches_changes_nothing(mixture):
    """Four experts, two a token: twice the even share is room for all tokens of a sequence."""
    model, params = load_pretrained(mixture[1])
    ids = reference.tokens(SEQUENCES, LENGTH)
    plain = reference.logits_of(model, params, ids)
    np.testing.assert_allclose(reference.logits_of(bounded(model, 2.0), params, ids), plain, atol=5e-5)
    assert np.abs(reference.logits_of(bounded(model, 0.5), params, ids) - plain).max() > 0.01


def test_a_bound_counts_each_sequence_alone(mixture):
    """What is dropped in a sequence does not depend on the sequences beside it, nor on padding."""
    _, directory = mixture
    model, params = load_pretrained(directory)
    model, ids = bounded(model, 0.5), reference.tokens(SEQUENCES, LENGTH)
    both = reference.logits_of(model, params, ids)
    alone = np.concatenate([reference.logits_of(model, params, sequence[None]) for sequence in ids])
    np.testing.assert_allclose(alone, both, atol=5e-5)


@pytest.mark.parametrize("layout", ["scan", "unrolled"])
def test_balance_loss_equals_transformers(mixture, layout):
    """With padding at the end of the second sequence."""
    torch_model, directory = mixture
    ids, seen = reference.tokens(SEQUENCES, LENGTH), np.ones((SEQUENCES, LENGTH), np.int32)
    seen[1, 15:] = 0
    mask = torch.from_numpy(seen).long()
    with torch.no_grad():
        logits = torch_model(
            input_ids=torch.from_numpy(ids).long(), attention_mask=mask, output_router_logits=True
        ).router_logits
    expected = float(load_balancing_loss_func(logits, 4, 2, mask))
    model, params = load_pretrained(directory, execution=Execution(layer_layout=layout))
    _, collections = model.apply({"params": params}, ids, None, seen, method="hidden", mutable=[ROUTING])
    routing = total_routing(collections[ROUTING])
    found = balance_loss(routing, routing.chosen, jnp.sum(seen, dtype=jnp.float32), model.config.num_layers)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert float(found) > 2.01  # 2 is what an even spread gives


MESHES = [(8, (1, 1, 4, 1, 2)), (8, (2, 2, 2, 1, 1)), (8, (1, 8, 1, 1, 1)), (3, (1, 2, 4, 1, 1))]


@pytest.mark.parametrize(("sequences", "sizes"), MESHES)
@pytest.mark.parametrize("capacity", [0.0, 0.75])
def test_logits_do_not_depend_on_the_mesh(mixture, sequences, sizes, capacity):
    """Sequences that divide over the mesh, and three that do not."""
    model, params = load_pretrained(mixture[1])
    model, ids = bounded(model, capacity), reference.tokens(sequences, LENGTH)
    expected = reference.logits_of(model, params, ids)
    mesh = jax.make_mesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
    with jax.set_mesh(mesh):
        found = reference.jit(lambda params, ids: model.apply({"params": params}, ids))(jax.device_get(params), ids)
    np.testing.assert_allclose(found, expected, atol=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("capacity", [0.0, 2.0])
def test_gradients_do_not_depend_on_the_mesh(mixture, capacity):
    """Those of biases and sinks among them, with weights gathered as in training."""
    execution = Execution(gathers_weights=True)
    model, params = load_pretrained(mixture[1], execution=execution)
    model, ids = bounded(model, capacity), reference.tokens(8, LENGTH)

    def loss(params, ids):
        return jnp.sum(jnp.sin(model.apply({"params": params}, ids)))

    expected = reference.flat(reference.jit(jax.grad(loss))(params, ids))
    mesh = make_mesh({"fsdp": 2, "expert": 2, "tensor": 2}, jax.devices())
    with jax.set_mesh(mesh):
        lie = lambda path, leaf: NamedSharding(mesh, spec_of(path_string(path), leaf.shape, dict(mesh.shape)))
        placed = jax.device_put(jax.device_get(params), jax.tree_util.tree_map_with_path(lie, params))
        found = reference.flat(reference.jit(jax.grad(loss))(placed, ids))
    errors = {
        path: reference.relative(found[path], leaf) for path, leaf in expected.items() if np.abs(leaf).max() > 1e-4
    }
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.parametrize(("name", "split"), [("gate", "b"), ("up", "b"), ("down", "a")])
def test_what_an_adapter_keeps_constant_is_split_like_what_it_trains(name, split):
    a, b = jnp.zeros((4, 8, 2)), jnp.zeros((4, 2, 8))
    arrays = {"a": a, "constant_a": a, "b": b, "constant_b": b}
    specs = _weight_specs(name, arrays, {"replica": 1, "fsdp": 1, "expert": 2, "tensor": 2})
    assert "tensor" in specs[split]
    assert specs["constant_a"] == specs["a"]
    assert specs["constant_b"] == specs["b"]
