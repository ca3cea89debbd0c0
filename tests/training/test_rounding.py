"""Training in bfloat16: stochastic rounding keeps what rounding to the nearest loses, in parameters and in moments."""

import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from configs import sft
from sft_jax.models.layouts import to_layout
from sft_jax.objectives import cross_entropy
from sft_jax.options import options_of
from sft_jax.runs.metric_log import read_metrics
from sft_jax.runs.restore import load_for_inference
from sft_jax.sharding import inference_mesh, make_mesh, path_string, shardings_of
from sft_jax.training import run
from sft_jax.training.abstract import abstract_around
from sft_jax.training.optimizer import OptimizerSettings, hyperparameters
from sft_jax.training.rounding import kept_like, round_stochastically, rounding_key
from sft_jax.training.setup import fresh_state
from sft_jax.training.state import seed_array
from sft_jax.training.step import StepSettings, updated
from sft_jax.training.update_rules import RULES
from tests import tiny
from tests.models import reference

BFLOAT16 = ml_dtypes.bfloat16
SHAPES = {
    "params/embedding": (64, 32),
    "params/layers/ffn/up/kernel": (2, 48, 64),
    "params/layers/attention_norm/scale": (2, 48),
}
ONE = {"replica": 1, "fsdp": 1, "expert": 1, "tensor": 1}
STEPS = 200


@pytest.mark.parametrize(
    ("x", "below", "above", "share"),
    [
        (1.0, 1.0, 1.0, 0.0),
        (-2.5, -2.5, -2.5, 0.0),
        (0.0, 0.0, 0.0, 0.0),
        (1 + 2**-9, 1.0, 1 + 2**-7, 0.25),
        (1 + 2**-8, 1.0, 1 + 2**-7, 0.5),
        (-1 - 2**-9, -1.0, -1 - 2**-7, 0.25),
        (2 - 2**-9, 2 - 2**-7, 2.0, 0.75),
        (3e-39, None, None, None),
        (np.inf, np.inf, np.inf, 0.0),
    ],
)
def test_probabilities_by_hand(x, below, above, share):
    rounded = np.asarray(round_stochastically(jnp.full(10_000, x, jnp.float32), jax.random.key(0)), np.float64)
    if below is not None:
        assert set(rounded) <= {below, above}
        assert np.mean(rounded == above) == pytest.approx(share, abs=0.02) or below == above
    else:  # a number that float32 has no leading 1 for
        assert rounded.mean() == pytest.approx(x, rel=0.02)
    assert np.isnan(np.asarray(round_stochastically(jnp.full(3, np.nan), jax.random.key(0)), np.float32)).all()


def draw(seed, spread=1.0):
    rng = np.random.default_rng(seed)
    flat = {path: (spread * rng.standard_normal(shape)).astype(np.float32) for path, shape in SHAPES.items()}
    return unflatten_dict(flat, sep="/")


def test_bits_are_of_seed_step_name_and_layer_alone():
    """The same in either layer layout and on any mesh; others in another step, seed, array and layer."""
    tree = jax.tree.map(lambda leaf: np.full_like(leaf, 1 + 2**-8), draw(0))
    low = lambda tree: jax.tree.map(lambda leaf: leaf.astype(BFLOAT16), tree)
    rounded = lambda tree, seed=0, step=3: jax.tree.map(
        np.asarray,
        jax.jit(lambda t: kept_like(t, low(t), rounding_key(seed_array(seed), jnp.asarray(step))))(tree),
    )
    flat = lambda tree: {name: leaf.astype(np.float32) for name, leaf in flatten_dict(tree, sep="/").items()}
    found = flat(rounded(tree))
    listed = rounded({"params": to_layout(tree["params"], "unrolled", np.stack)})
    mesh = make_mesh({"replica": 1, "fsdp": 4, "expert": 1, "tensor": 2}, jax.devices())
    split = rounded(jax.device_put(tree, shardings_of(tree, mesh)))
    for other in ({"params": to_layout(listed["params"], "scan", np.stack)}, split):
        for name, leaf in flat(other).items():
            np.testing.assert_array_equal(leaf, found[name], err_msg=name)
    kernel = "params/layers/ffn/up/kernel"
    for other in (rounded(tree, step=4), rounded(tree, seed=1)):
        assert np.mean(flat(other)[kernel] != found[kernel]) == pytest.approx(0.5, abs=0.05)
    assert np.mean(found[kernel][0] != found[kernel][1]) == pytest.approx(0.5, abs=0.05)
    assert np.mean(found[kernel][0, :32, :32] != found["params/embedding"][:32]) == pytest.approx(0.5, abs=0.05)


def after_steps(rule, dtype, gradients, betas=(0.9, 0.95), rate=2e-5):
    """Parameters and optimizer state, in float32, that the train step's update makes of parameters of about 0.02."""
    config = sft.get_config().copy_and_resolve_references()
    config.optimizer.learning_rate, config.optimizer.betas, config.optimizer.weight_decay = rate, betas, 0.0
    hyper = hyperparameters(options_of(config), 0, 1)
    settings = StepSettings(cross_entropy, OptimizerSettings(rule))
    mesh = make_mesh(ONE, jax.devices()[:1])
    params = jax.tree.map(lambda leaf: np.asarray(0.02 + 0.002 * leaf).astype(dtype), draw(0))
    params = jax.device_put(params, shardings_of(params, mesh))
    abstract = abstract_around(params, {}, hyper, settings.optimizer, mesh)
    state = fresh_state(abstract, params, {}, hyper, seed_array(0), settings.optimizer)
    kinds = jax.tree.map(lambda leaf: leaf.dtype, (state.trained, state.opt_state))

    @jax.jit
    def many(state, gradients):
        def step(state, gradient):
            trained, opt_state, *_ = updated(settings, state, gradient, state.hyper["learning_rate"])
            return state.replace(trained=trained, opt_state=opt_state, step=state.step + 1), None

        return jax.lax.scan(step, state, gradients)[0]

    state = many(state, gradients)
    assert kinds == jax.tree.map(lambda leaf: leaf.dtype, (state.trained, state.opt_state))
    wide = lambda tree: jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)
    return wide(params), wide(state.trained), wide(state.opt_state)


def noisy_gradients():
    """A direction of its own for each entry, and noise: [steps, …] each."""
    rng, mean = np.random.default_rng(1), draw(5)
    noise = lambda leaf: leaf + rng.standard_normal((STEPS, *leaf.shape)).astype(np.float32)
    return jax.tree.map(noise, mean)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_200_small_updates_are_as_in_float32(rule):
    """By every rule, parameters go as far in the direction in which they go in float32; and are kept in bfloat16.

    Adafactor's rates are relative to the size of the parameters.
    """
    gradients, rate = noisy_gradients(), 1e-3 if rule == "adafactor" else 2e-5
    start, wide, _ = after_steps(rule, np.float32, gradients, rate=rate)
    low_start, low, _ = after_steps(rule, BFLOAT16, gradients, rate=rate)
    for path, moved in flatten_dict(jax.tree.map(np.subtract, wide, start), sep="/").items():
        name = tuple(path.split("/"))
        ours = flatten_dict(low)[name] - flatten_dict(low_start)[name]
        assert np.abs(moved).mean() > 2e-4, path
        assert np.sum(ours * moved) / np.sum(moved * moved) == pytest.approx(1.0, abs=0.1), path


def test_to_the_nearest_nothing_moves():
    """What the test above would not let through."""
    w = np.full(4, 0.02, BFLOAT16)
    for _ in range(STEPS):
        w = (w.astype(np.float32) - np.float32(2e-5)).astype(BFLOAT16)
    assert (w == BFLOAT16(0.02)).all()


@pytest.mark.parametrize(
    ("rule", "betas", "moment"),
    [("adamw", (0.9, 0.999), "nu"), ("lion", (0.9, 0.999), "mu"), ("muon", (0.9, 0.999), "nu")],
)
def test_moments_forget_as_in_float32(rule, betas, moment):
    """Gradients of 1, then of 0.01: with beta2 = 0.999 each step changes a moment by less than bfloat16 tells apart."""
    gradients = jax.tree.map(lambda leaf: np.ones((STEPS, *leaf.shape), np.float32), draw(0))
    for leaf in jax.tree.leaves(gradients):
        leaf[STEPS // 2 :] = 0.01
    found = []
    for dtype in (np.float32, BFLOAT16):
        _, _, opt_state = after_steps(rule, dtype, gradients, betas)
        flat = jax.tree_util.tree_flatten_with_path(opt_state)[0]
        found.append([leaf.mean() for path, leaf in flat if path_string(path).endswith(f"/{moment}/params/embedding")])
    assert len(found[0]) == 1
    np.testing.assert_allclose(found[1], found[0], rtol=0.02)


@pytest.mark.slow
def test_a_run_in_bfloat16_learns_as_one_in_float32(tmp_path):
    """200 steps at 2e-5: the held-out loss falls as far. Continued in the middle the run is the same, bit for bit."""
    common = {
        "duration": f"{STEPS} steps",
        "optimizer.learning_rate": 2e-5,
        "optimizer.schedule": "constant",
        "evaluation.every": "0 steps",
        "checkpoint.every": "100 steps",
        "checkpoint.keep_last": 2,
        "mesh.fsdp": 2,
        "mesh.replica": 4,
        "ema.decay": 0.9,
    }
    fallen = {}
    for params in ("float32", "bfloat16"):
        run(tiny.config(tmp_path, **common, **{"precision.params": params}), tmp_path / params)
        lines = read_metrics(tmp_path / params / "metrics.jsonl")
        measured = [line["held_out/nll"] for line in lines if "held_out/nll" in line]
        fallen[params] = measured[0] - measured[-1]
    assert fallen["float32"] > 0.05
    assert fallen["bfloat16"] == pytest.approx(fallen["float32"], rel=0.1)
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        kept = reference.flat(load_for_inference(str(tmp_path / "bfloat16"), mesh, "float32").variables)
    assert {leaf.dtype for leaf in kept.values()} == {np.dtype(BFLOAT16)}
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    shutil.rmtree(tmp_path / "bfloat16" / "checkpoints" / str(STEPS))
    run(tiny.config(tmp_path, **common, **{"precision.params": "bfloat16"}), tmp_path / "bfloat16")
    continued = read_metrics(tmp_path / "bfloat16" / "metrics.jsonl")
    assert [line["train/loss"] for line in continued if "train/loss" in line] == losses
