"""The numbers do not depend on the machine: one reference, everything else against it."""

import dataclasses
import functools
import itertools
import math

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from sft_jax.data.batches import assemble, held_out_bins
from sft_jax.models.layouts import to_layout
from sft_jax.models.loading import load_pretrained
from sft_jax.models.partitioning import MESH_AXES
from sft_jax.options import options_of
from sft_jax.preparation import run_data
from sft_jax.runs.base import open_base
from sft_jax.sharding import batch_sharding, make_mesh, put_batch, shardings_of
from sft_jax.training import held_out, setup
from sft_jax.training.optimizer import hyperparameters
from sft_jax.training.step import compile_eval_step, gradients
from tests import tiny
from tests.training.three_models import write_three_models

REFERENCE = {
    **{f"mesh.{axis}": 1 for axis in MESH_AXES},
    "execution.layer_layout": "scan",
    "execution.remat": "none",
    "execution.attention": "reference",
    "objective.head_chunk_tokens": 0,
    "batch.sequences": 8,
}


def mesh(replica: int = 1, fsdp: int = 1, tensor: int = 1, expert: int = 1, context: int = 1) -> dict:
    return {
        f"mesh.{axis}": size for axis, size in zip(MESH_AXES, (replica, fsdp, expert, context, tensor), strict=True)
    }


ALL_AT_ONCE = mesh(2, 2, 2) | {
    "batch.micro_batches": 2,
    "execution.layer_layout": "unrolled",
    "execution.remat": "full",
    "execution.attention": "blocked",
    "objective.head_chunk_tokens": 32,
    "objective.positions": "all",
}
# Each two axes of size 2 with a third one, in one mesh of these or another.
TRIPLES = tuple(itertools.combinations(MESH_AXES, 3))
IN_CONTEXT = {
    "context 8": mesh(context=8),
    "context 2, positions all": mesh(fsdp=4, context=2) | {"objective.positions": "all"},
    "context 2, chunked head": mesh(fsdp=2, context=2, tensor=2) | {"objective.head_chunk_tokens": 40},
    "context 4, all at once": ALL_AT_ONCE | mesh(fsdp=2, context=4),
    "context 4, unpacked": mesh(tensor=2, context=4) | {"data.packing": "none"},
    "context 4, splash": mesh(fsdp=2, context=4) | {"execution.attention": "splash"},
    "context 2, triton": mesh(fsdp=2, context=2, tensor=2) | {"execution.attention": "triton"},
}
CASES = {
    "fsdp 8": mesh(1, 8, 1),
    "fsdp 4, tensor 2": mesh(1, 4, 2),
    "replica 2, fsdp 2, tensor 2": mesh(2, 2, 2),
    "2 micro-batches": {"batch.micro_batches": 2},
    "4 micro-batches": {"batch.micro_batches": 4},
    "2 micro-batches on 8 devices": mesh(1, 4, 2) | {"batch.micro_batches": 2},
    "unpacked": {"data.packing": "none"},
    "unrolled": {"execution.layer_layout": "unrolled"},
    "blocked attention": {"execution.attention": "blocked"},
    "remat full": {"execution.remat": "full"},
    "remat products": {"execution.remat": "products"},
    "remat attention_products": {"execution.remat": "attention_products"},
    "remat attention": {"execution.remat": "attention"},
    "chunked head": {"objective.head_chunk_tokens": 40},  # 5 slots of a row at a time: the last chunk is padded
    "head on all positions": {"objective.positions": "all"},
    "all at once": ALL_AT_ONCE,
}
# Of objectives of answers, which have no slot for each position.
OF_ANSWERS = {
    "fsdp 8": mesh(1, 8, 1),
    "replica 2, fsdp 2, tensor 2": mesh(2, 2, 2),
    "fsdp 2, context 2": mesh(fsdp=2, context=2),
    **{
        name: CASES[name]
        for name in ("2 micro-batches", "4 micro-batches", "unpacked", "unrolled", "blocked attention", "remat full")
    },
    "all at once": {name: value for name, value in ALL_AT_ONCE.items() if name != "objective.positions"},
}
LORA_CASES = ("fsdp 8", "replica 2, fsdp 2, tensor 2", "4 micro-batches", "unpacked", "unrolled", "all at once")
MIXTURE_CASES = {
    "expert 4, fsdp 2": mesh(1, 2, 1, expert=4),
    "replica 2, expert 2, tensor 2": mesh(2, 1, 2, expert=2),
    "fsdp 8": mesh(1, 8, 1),
    "4 micro-batches": {"batch.micro_batches": 4},
    "unpacked": {"data.packing": "none"},
    "all at once": ALL_AT_ONCE | mesh(1, 2, 2, expert=2),
    "expert 2, context 4": mesh(expert=2, context=4),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Tiny models: tied for full fine-tuning; a head of its own under LoRA; and a mixture of experts."""
    made = tmp_path_factory.mktemp("invariance")
    write_three_models(made)
    return made


@dataclasses.dataclass
class Built:
    config: object
    data: run_data.Data
    mesh: jax.sharding.Mesh
    model: object
    settings: object
    state: object


def build(root, arg, model: str = "", **overrides) -> Built:
    config = tiny.config(root / (model or arg), arg, **(REFERENCE | overrides))
    devices = make_mesh(config.mesh.to_dict(), jax.devices()[: math.prod(config.mesh.values())])
    base = open_base(config.model.source)
    model = setup.make_model(options_of(config), base.decoder, devices)
    with jax.set_mesh(devices):
        state = setup.init_state(options_of(config), base, model, devices, hyperparameters(options_of(config), 0, 10))
        if arg == "lora":
            trained = {**state.trained, **fill_adapters(state.trained, model.layout)}
            state = state.replace(trained=jax.device_put(trained, shardings_of(trained, devices)))
    return Built(
        config,
        run_data.load_data(options_of(config)),
        devices,
        model,
        setup.step_settings(options_of(config), devices),
        state,
    )


def fill_adapters(trained, layout):
    """The same random B in either layout: at B = 0 the gradient of A would be zero, and equal whatever happens."""
    rng = np.random.default_rng(0)
    flat = flatten_dict(to_layout(jax.device_get(trained["adapters"]), "scan", np.stack))
    filled = {
        path: rng.standard_normal(leaf.shape).astype(np.float32) * 0.2 if path[-1] == "b" else np.asarray(leaf)
        for path, leaf in sorted(flat.items())
    }
    return {"adapters": to_layout(unflatten_dict(filled), layout, np.stack)}


def batch_of(built: Built, normalize: str = "tokens") -> dict:
    """The same 16 conversations in every case: several in a row of the batch, or one."""
    rows = built.data.examples
    bins = (
        [np.array([i]) for i in range(16)]
        if built.config.data.packing == "none"
        else [np.array([2 * i, 2 * i + 1]) for i in range(8)]
    )
    return assemble(
        rows,
        bins,
        sequence_length=192,
        sequence_targets=192 if built.config.objective.positions == "all" else 72,
        normalize=normalize,
    )


def measure(built: Built, batch: dict) -> tuple[dict, dict]:
    """Metrics as (sum, count), and gradients as NumPy by path in the stacked layout."""
    state_shardings = shardings_of(built.state, built.mesh)

    def constrain(gradient):
        return jax.lax.with_sharding_constraint(gradient, state_shardings.trained)

    def both(state, batch):
        return gradients(built.model, built.settings, state, batch, constrain)

    with jax.set_mesh(built.mesh):
        step = jax.jit(both, in_shardings=(state_shardings, batch_sharding(built.mesh)))
        metrics, gradient = jax.device_get(step(built.state, put_batch(batch, built.mesh)))
    stacked = {name: to_layout(tree, "scan", np.stack) for name, tree in gradient.items()}
    return metrics, flatten_dict(stacked, sep="/")


@pytest.fixture(scope="module")
def reference(root):
    @functools.cache
    def measured(arg, model="", **overrides):
        built = build(root, arg, model, **overrides)
        return measure(built, batch_of(built))

    return measured


def assert_same(found: tuple[dict, dict], expected: tuple[dict, dict]) -> None:
    (metrics, gradient), (expected_metrics, expected_gradient) = found, expected
    assert metrics.keys() == expected_metrics.keys()
    for name, pair in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], pair, rtol=2e-6, err_msg=name)
    assert gradient.keys() == expected_gradient.keys()
    for path, leaf in expected_gradient.items():
        norm = np.linalg.norm(leaf)
        assert norm > 1e-4, f"{path}: this gradient shows nothing"
        assert np.linalg.norm(gradient[path] - leaf) <= 1e-5 * norm, path


@pytest.mark.parametrize("case", CASES)
def test_full_fine_tuning(root, reference, case):
    built = build(root, "full", **CASES[case])
    assert_same(measure(built, batch_of(built)), reference("full"))


@pytest.mark.slow
@pytest.mark.parametrize("case", LORA_CASES)
def test_lora(root, reference, case):
    built = build(root, "lora", **CASES[case])
    found = measure(built, batch_of(built))
    assert all(path.startswith("adapters/") for path in found[1])
    assert_same(found, reference("lora"))


@pytest.mark.slow
@pytest.mark.parametrize("arg", ["full", "lora"])
@pytest.mark.parametrize("case", IN_CONTEXT)
def test_sequences_split_over_devices(root, reference, arg, case):
    built = build(root, arg, **IN_CONTEXT[case])
    assert_same(measure(built, batch_of(built)), reference(arg))


RANDOM = {"adapter.dropout": 0.5, "objective.neftune_alpha": 10.0}


@pytest.mark.slow
def test_what_is_random_is_not_a_matter_of_the_mesh(root, reference):
    built = build(root, "lora", **RANDOM, **mesh(fsdp=2, context=4))
    expected = reference("lora", **RANDOM)
    assert_same(measure(built, batch_of(built)), expected)
    with pytest.raises(AssertionError):
        assert_same(expected, reference("lora", **RANDOM | {"objective.neftune_alpha": 0.0}))
    with pytest.raises(AssertionError):
        assert_same(expected, reference("lora", **RANDOM | {"adapter.dropout": 0.0}))


@pytest.mark.slow
def test_which_tokens_find_a_place_is_not_a_matter_of_the_mesh(root, reference):
    """Earlier tokens come first, wherever they are."""
    bound = {"experts.capacity": 0.5}
    built = build(root, "full", "mixture", **bound, **mesh(expert=2, context=4))
    expected = reference("full", "mixture", **bound)
    assert_same(measure(built, batch_of(built)), expected)
    with pytest.raises(AssertionError):
        assert_same(expected, reference("full", "mixture"))


def test_every_pair_of_axes_is_tried():
    pairs = {pair for triple in TRIPLES for pair in itertools.combinations(triple, 2)}
    assert pairs == set(itertools.combinations(MESH_AXES, 2))


@pytest.mark.slow
@pytest.mark.parametrize("arg", ["full", "lora"])
@pytest.mark.parametrize("axes", TRIPLES, ids="-".join)
def test_axes_together(root, reference, arg, axes):
    """Of a mixture of experts: its parameters and tokens are split along all of them."""
    built = build(root, arg, "mixture", **mesh(**dict.fromkeys(axes, 2)))
    assert_same(measure(built, batch_of(built)), reference(arg, "mixture"))


@pytest.mark.slow
@pytest.mark.parametrize("arg", ["full", "lora"])
@pytest.mark.parametrize("case", MIXTURE_CASES)
def test_mixture_of_experts(root, reference, arg, case):
    """The balance loss, as heavy as the loss itself, is that of the whole step."""
    heavy = {"experts.balance_loss": 1.0}
    built = build(root, arg, "mixture", **heavy, **MIXTURE_CASES[case])
    found = measure(built, batch_of(built))
    assert found[0]["balance_loss"][0] > 2
    assert_same(found, reference(arg, "mixture", **heavy))


def test_the_balance_loss_has_a_gradient(root, reference):
    router = "params/layers/experts/router/kernel"
    with_loss, without = (reference("full", "mixture", **{"experts.balance_loss": x})[1][router] for x in (1.0, 0.0))
    assert np.linalg.norm(with_loss - without) > 0.01 * np.linalg.norm(without)


def test_the_comparison_can_fail(root, reference):
    """One target fewer, of 350, is seen."""
    built = build(root, "full")
    batch = batch_of(built)
    row, slot = (axis[0] for axis in np.nonzero(batch["weights"]))
    batch["weights"][row, slot] = 0
    with pytest.raises(AssertionError):
        assert_same(measure(built, batch), reference("full"))


def naive_loss(root, rows, members, normalize: str) -> float:
    """The definition, one conversation at a time: -log p of each trained token, averaged as `normalize` says."""
    model, params = load_pretrained(root / "full" / "model")
    logits = jax.jit(lambda tokens: model.apply({"params": params}, tokens))
    per_example = []
    for member in members:
        tokens, weights = rows.example(member)
        padded = np.zeros((1, 96), np.int32)
        padded[0, : len(tokens)] = tokens
        scores = np.asarray(logits(padded), np.float64)[0]
        log_p = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
        per_example.append([-log_p[i - 1, tokens[i]] for i in range(1, len(tokens)) if weights[i] > 0])
    if normalize == "examples":
        return float(np.mean([np.mean(each) for each in per_example]))
    return float(np.mean([nll for each in per_example for nll in each]))


@pytest.mark.parametrize("normalize", ["tokens", "examples"])
def test_loss_is_its_definition(root, normalize):
    built = build(root, "full")
    total, count = measure(built, batch_of(built, normalize))[0]["loss"]
    assert total / count == pytest.approx(naive_loss(root, built.data.examples, range(16), normalize), rel=2e-6)
    if normalize == "examples":
        assert count == pytest.approx(16)


def test_held_out_loss_does_not_depend_on_batch_size_or_devices(root):
    bins, found = 0, []
    for batch_sequences, devices in ((1, 1), (4, 1), (8, 1), ("all", 1), (1, 2)):
        built = build(root, "full", **mesh(1, devices, 1), **{"data.sequence_length": 128})
        data = built.data
        bins = len(held_out_bins(data.held_out, 128, data.held_out_targets))
        with built.config.unlocked():
            built.config.evaluation.batch_sequences = bins if batch_sequences == "all" else batch_sequences
        with jax.set_mesh(built.mesh):
            step = compile_eval_step(built.model, built.settings, built.state, built.mesh)
            found.append(held_out.held_out_metrics(step, built.state, data, options_of(built.config), built.mesh))
    assert bins % 4, "the last batch must be filled up with padding"
    assert len(data.held_out) == 12
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-6)
    expected = naive_loss(root, data.held_out, range(12), "tokens")
    assert found[0]["held_out/loss"] == pytest.approx(expected, rel=2e-6)


@pytest.mark.slow
def test_micro_batches_draw_their_own_dropout(root):
    """Two equal rows as two micro-batches: were their masks alike, the loss would be twice that of one row."""
    overrides = {"adapter.dropout": 0.5, "batch.sequences": 2}
    one_key, two_keys = (jax.random.key_data(jax.random.split(jax.random.key(0), n))[0] for n in (1, 2))
    np.testing.assert_array_equal(one_key, two_keys)  # the first micro-batch draws as a batch of one row does
    totals = {}
    for parts in (1, 2):
        built = build(root, "lora", **overrides, **{"batch.micro_batches": parts})
        batch = {name: np.repeat(array[:1], parts, axis=0) for name, array in batch_of(built).items()}
        totals[parts] = float(measure(built, batch)[0]["loss"][0])
    assert abs(totals[2] - 2 * totals[1]) > 1e-3 * totals[1]
    assert abs(totals[2] - 2 * totals[1]) < 0.3 * totals[1]
