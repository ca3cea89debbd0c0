"""Every update rule: against torch or the paper's formula, in both layer layouts, and in how much memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from configs import sft
from sft_jax.models.layouts import to_layout
from sft_jax.options import options_of
from sft_jax.training.optimizer import OptimizerSettings, hyperparameters, make_optimizer
from sft_jax.training.update_rules import RULES, unread_options

KERNEL, EMBEDDING, NORM = "params/layers_0/ffn/up/kernel", "params/embedding", "params/final_norm/scale"
SHAPES = {KERNEL: (140, 130), EMBEDDING: (150, 160), NORM: (7,)}
STACKED = {
    "params/embedding": (20, 16),
    "params/layers/attention/query/kernel": (3, 140, 130),
    "params/layers/attention/query/bias": (3, 130),
    "params/layers/attention_norm/scale": (3, 140),
    "params/layers/experts/up/kernel": (3, 2, 96, 70),
    "params/layers/experts/router/kernel": (3, 16, 2),
    "adapters/layers/attention/query/a": (3, 140, 4),
    "adapters/layers/attention/query/b": (3, 4, 1300),
}
RATE = 0.01


def numbers(**options):
    """Hyperparameters of `configs/sft.py` with a decay that shows."""
    config = sft.get_config().copy_and_resolve_references()
    config.optimizer.learning_rate, config.optimizer.weight_decay, config.optimizer.epsilon = RATE, 0.1, 1e-6
    config.optimizer.update(options)
    return hyperparameters(options_of(config), 0, 100)


def draw(shapes, seed, spread=1.0):
    rng = np.random.default_rng(seed)
    return {path: (spread * rng.standard_normal(shape)).astype(np.float32) for path, shape in shapes.items()}


def gradients_of(shapes, count=5):
    """Of varied size, so that clipping and normalisation show."""
    return [draw(shapes, seed, spread=2.0 ** (seed % 3)) for seed in range(1, count + 1)]


def trained_with(rule, params, gradients, hyper, groups=()):
    """Parameters by path after one step for each of the gradients; and the state."""
    tree = unflatten_dict(params, sep="/")
    make = lambda: make_optimizer(OptimizerSettings(rule, groups), hyper, hyper["learning_rate"])
    state = jax.jit(lambda tree: make().init(tree))(tree)

    @jax.jit
    def step(tree, state, gradient):
        updates, state = make().update(gradient, state, tree)
        return optax.apply_updates(tree, updates), state

    for gradient in gradients:
        tree, state = step(tree, state, unflatten_dict(gradient, sep="/"))
    return flatten_dict(tree, sep="/"), state


def torch_adamw(torch, tensors):
    options = {"lr": RATE, "betas": (0.9, 0.95), "eps": 1e-6}
    return [
        torch.optim.AdamW([x for name, x in tensors.items() if name != NORM], weight_decay=0.1, **options),
        torch.optim.AdamW([tensors[NORM]], weight_decay=0.0, **options),
    ]


def torch_adafactor(torch, tensors):
    return [
        torch.optim.Adafactor([x for name, x in tensors.items() if name != NORM], lr=RATE, weight_decay=0.1),
        torch.optim.Adafactor([tensors[NORM]], lr=RATE, weight_decay=0.0),
    ]


def torch_muon(torch, tensors):
    hidden = torch.optim.Muon(
        [tensors[KERNEL]], lr=RATE, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    return [hidden, *torch_adamw(torch, {name: x for name, x in tensors.items() if name != KERNEL})]


@pytest.mark.parametrize(
    ("rule", "theirs"), [("adamw", torch_adamw), ("adafactor", torch_adafactor), ("muon", torch_muon)]
)
def test_rules_equal_torch(rule, theirs, monkeypatch):
    """Five steps on random matrices, to 3e-5 of the distance gone."""
    torch = pytest.importorskip("torch")
    # torch iterates Muon's Newton-Schulz in bfloat16, to which it would agree to 1 % only.
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    params, gradients = draw(SHAPES, 0), gradients_of(SHAPES)
    tensors = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in params.items()}
    optimizers = theirs(torch, tensors)
    for gradient in gradients:
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(gradient[name])
        for optimizer in optimizers:
            optimizer.step()
    ours, _ = trained_with(rule, params, gradients, numbers())
    for name, tensor in tensors.items():
        gone = np.linalg.norm(tensor.detach().numpy() - params[name])
        assert np.linalg.norm(ours[name] - tensor.detach().numpy()) <= 3e-5 * gone + 1e-6, name


def test_lion_equals_the_paper():
    """Algorithm 2 of Chen et al. 2023."""
    params, gradients = draw(SHAPES, 0), gradients_of(SHAPES)
    ours, _ = trained_with("lion", params, gradients, numbers(betas=(0.9, 0.99)))
    for name, weights in params.items():
        momentum, decay = np.zeros_like(weights), 0.0 if name == NORM else 0.1
        for gradient in gradients:
            direction = np.sign(0.9 * momentum + 0.1 * gradient[name])
            weights = weights - RATE * (direction + decay * weights)
            momentum = 0.99 * momentum + 0.01 * gradient[name]
        np.testing.assert_allclose(ours[name], weights, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_the_layout_does_not_change_the_numbers(rule):
    """Layers and experts stacked in one array, or in arrays of their own."""
    params, gradients = draw(STACKED, 0), gradients_of(STACKED, 3)

    def unrolled(flat):
        tree = unflatten_dict(flat, sep="/")
        return flatten_dict({name: to_layout(part, "unrolled", np.stack) for name, part in tree.items()}, sep="/")

    stacked, _ = trained_with(rule, params, gradients, numbers())
    listed, _ = trained_with(rule, unrolled(params), [unrolled(gradient) for gradient in gradients], numbers())
    assert len(listed) == 1 + 3 * (len(STACKED) - 1)
    for path, expected in unrolled(stacked).items():
        np.testing.assert_allclose(listed[path], expected, rtol=1e-5, atol=1e-6, err_msg=path)


def nbytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("rule", "least", "most"),
    [
        ("adamw", 2, 2),
        ("lion", 1, 1),
        ("adafactor", 0, 0.15),
        ("muon", 1.5, 1.6),
        ("schedule_free", 3, 3),  # optax keeps a first moment that is the gradient itself
        ("adam8bit", 0.5, 0.6),
    ],
)
def test_memory_of_moments(rule, least, most):
    """As a multiple of the trained parameters; Adafactor keeps two vectors of a large matrix."""
    params = draw(SHAPES, 0)
    _, state = trained_with(rule, params, [], numbers())
    assert least * nbytes(params) <= nbytes(state) <= most * nbytes(params) + 64


@pytest.mark.parametrize("rule", RULES)
def test_no_number_is_a_constant_of_the_program(rule):
    """One program serves other learning rates, decays, betas, and numbers of groups."""
    params, gradient = (unflatten_dict(draw(SHAPES, seed), sep="/") for seed in (0, 1))
    settings, traces = OptimizerSettings(rule, ("embedding",)), []

    @jax.jit
    def step(params, state, hyper):
        traces.append(rule)
        return make_optimizer(settings, hyper, hyper["learning_rate"]).update(gradient, state, params)[0]

    def updates(**options):
        hyper = numbers(**options)
        return step(params, make_optimizer(settings, hyper, hyper["learning_rate"]).init(params), hyper)

    group = lambda factor: {"groups": (f"embedding: learning_rate_factor={factor}",)}
    one, other = updates(**group(1)), updates(**group(3), learning_rate=2 * RATE)
    assert len(traces) == 1
    np.testing.assert_allclose(
        other["params"]["embedding"], 6 * np.asarray(one["params"]["embedding"]), rtol=1e-4, atol=1e-7
    )
    np.testing.assert_allclose(
        other["params"]["final_norm"]["scale"], 2 * np.asarray(one["params"]["final_norm"]["scale"]), rtol=1e-4
    )


def test_the_config_says_what_counts_as_not_asked_for():
    """Of every option that some rule, or some schedule, does not read."""
    config = sft.get_config()
    unread = {"final_share", "decay", "decay_shape"} | {option for rule in RULES for option in unread_options(rule)}
    assert {name: config.optimizer[name] for name in unread} == config.defaults.optimizer.to_dict()
    assert unread_options("adafactor") == ["betas", "epsilon", "momentum"]
    assert unread_options("muon") == ["decay_power"]


def test_groups_decide_rate_and_decay():
    """The first that matches decides; a group's decay holds for norms too; LoRA+ (Hayou 2024) is one."""
    groups = (
        "adapters/.*/b: learning_rate_factor=16",
        "attention_norm/scale|.*norm/scale: weight_decay=0.5",
        "layers/.*: learning_rate_factor=0",
        ".*/kernel: learning_rate_factor=7",  # layers come earlier
    )
    hyper = numbers(groups=groups)
    patterns = tuple(text.rpartition(":")[0] for text in groups)
    params, gradients = draw(STACKED, 0), gradients_of(STACKED, 1)
    plain, _ = trained_with("adamw", params, gradients, numbers())
    ours, _ = trained_with("adamw", params, gradients, hyper, patterns)
    moved = {path: np.asarray(ours[path]) - params[path] for path in params}
    before = {path: np.asarray(plain[path]) - params[path] for path in params}
    stem = "adapters/layers/attention/query"
    np.testing.assert_allclose(moved[f"{stem}/b"], 16 * before[f"{stem}/b"], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(moved[f"{stem}/a"], before[f"{stem}/a"], atol=1e-7)
    scale = "params/layers/attention_norm/scale"
    np.testing.assert_allclose(moved[scale], before[scale] - RATE * 0.5 * params[scale], rtol=1e-4, atol=1e-6)
    for path in ("attention/query/kernel", "experts/router/kernel", "attention/query/bias"):
        assert not moved[f"params/layers/{path}"].any(), path
    assert jnp.abs(moved["params/embedding"]).min() > 0
