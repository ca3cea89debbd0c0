"""Schedules, AdamW and the decay mask."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sft_jax.training.optimizer import adamw, decay_mask, learning_rate


def hyper(**values):
    defaults = {
        "learning_rate": 0.2,
        "final_share": 0.0,
        "warmup_steps": 10,
        "total_steps": 100,
        "weight_decay": 0.1,
        "beta1": 0.9,
        "beta2": 0.95,
        "epsilon": 1e-6,
    }
    return {name: jnp.asarray(value, jnp.float32) for name, value in (defaults | values).items()}


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("cosine", {}, {0: 0, 5: 0.1, 10: 0.2, 55: 0.1, 100: 0}),
        ("cosine", {"final_share": 0.1}, {0: 0, 10: 0.2, 55: 0.11, 100: 0.02, 200: 0.02}),
        ("linear", {}, {5: 0.1, 10: 0.2, 55: 0.1, 91: 0.02, 100: 0}),
        ("linear", {"final_share": 0.5}, {10: 0.2, 55: 0.15, 100: 0.1}),
        ("constant", {"final_share": 0.1}, {0: 0, 5: 0.1, 10: 0.2, 100: 0.2}),
        ("cosine", {"warmup_steps": 0}, {0: 0.2, 50: 0.1, 100: 0}),
        ("constant", {"warmup_steps": 0}, {0: 0.2}),
        ("cosine", {"warmup_steps": 100}, {50: 0.1, 99: 0.198}),
    ],
)
def test_schedules(kind, changes, expected):
    for step, rate in expected.items():
        found = learning_rate(kind, jnp.asarray(step, jnp.int32), hyper(**changes))
        assert float(found) == pytest.approx(rate, abs=1e-7), step


def test_decay_mask():
    """Everywhere but on norms and biases; adapters decay too."""
    tree = {
        "params": {
            "embedding": 0,
            "head": 0,
            "layers": {
                "attention": {"query": {"kernel": 0, "bias": 0}},
                "attention_norm": {"scale": 0},
            },
            "final_norm": {"scale": 0},
        },
        "adapters": {"layers": {"ffn": {"up": {"a": 0, "b": 0}}}},
    }
    assert decay_mask(tree) == {
        "params": {
            "embedding": True,
            "head": True,
            "layers": {
                "attention": {"query": {"kernel": True, "bias": False}},
                "attention_norm": {"scale": False},
            },
            "final_norm": {"scale": False},
        },
        "adapters": {"layers": {"ffn": {"up": {"a": True, "b": True}}}},
    }


def steps_of(transformation, params, gradients):
    state = transformation.init(params)
    for gradient in gradients:
        updates, state = transformation.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    shapes = {"kernel": (4, 3), "scale": (3,)}
    draw = lambda: {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return draw(), [draw() for _ in range(5)]


def test_adamw_equals_optax(problem):
    params, gradients = problem
    numbers = hyper()
    ours = steps_of(adamw(numbers, numbers["learning_rate"]), params, gradients)
    theirs = steps_of(optax.adamw(0.2, 0.9, 0.95, 1e-6, weight_decay=0.1, mask=decay_mask), params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


def test_adamw_equals_torch(problem):
    torch = pytest.importorskip("torch")
    params, gradients = problem
    tensors = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in params.items()}
    optimizer = torch.optim.AdamW(
        [{"params": [tensors["kernel"]], "weight_decay": 0.1}, {"params": [tensors["scale"]], "weight_decay": 0.0}],
        lr=0.2,
        betas=(0.9, 0.95),
        eps=1e-6,
    )
    for gradient in gradients:
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(gradient[name])
        optimizer.step()
    numbers = hyper()
    ours = steps_of(adamw(numbers, numbers["learning_rate"]), params, gradients)
    for name, tensor in tensors.items():
        np.testing.assert_allclose(ours[name], tensor.detach().numpy(), rtol=1e-5, atol=1e-6)
