"""Learning-rate schedules."""

import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.training.optimizer import learning_rate


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
        "decay_steps": 20,
        "decay_exponent": 1.0,
    }
    return {name: jnp.asarray(value, jnp.float32) for name, value in (defaults | values).items()}


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("cosine", {}, {1: 0.02, 5: 0.1, 10: 0.2, 11: 0.2, 56: 0.1, 101: 0}),
        ("cosine", {"final_share": 0.1}, {1: 0.02, 10: 0.2, 56: 0.11, 101: 0.02, 201: 0.02}),
        ("linear", {}, {5: 0.1, 10: 0.2, 56: 0.1, 92: 0.02, 101: 0}),
        ("linear", {"final_share": 0.5}, {10: 0.2, 56: 0.15, 101: 0.1}),
        ("constant", {"final_share": 0.1}, {1: 0.02, 5: 0.1, 10: 0.2, 100: 0.2}),
        ("cosine", {"warmup_steps": 0}, {1: 0.2, 51: 0.1, 101: 0}),
        ("constant", {"warmup_steps": 0}, {1: 0.2}),
        ("cosine", {"warmup_steps": 100}, {50: 0.1, 99: 0.198, 100: 0.2}),
        ("cosine", {"warmup_steps": 1}, {1: 0.2, 2: 0.2}),
        ("wsd", {"learning_rate": 1}, {5: 0.5, 10: 1, 11: 1, 45: 1, 80: 1, 81: 0.95, 90: 0.5, 100: 0}),
        ("wsd", {"learning_rate": 1, "decay_exponent": 0.5}, {5: 0.5, 10: 1, 80: 1, 90: 0.2928932, 100: 0}),
        ("wsd", {"final_share": 0.1}, {5: 0.1, 80: 0.2, 90: 0.11, 100: 0.02}),
        ("wsd", {"decay_steps": 0}, {9: 0.18, 10: 0.2, 99: 0.2, 100: 0.2}),
    ],
)
def test_schedules(kind, changes, expected):
    """By the number of the step, from 1."""
    for step, rate in expected.items():
        assert rate_of(step, kind, **changes) == pytest.approx(rate, abs=1e-7), step


def rate_of(step: int, kind: str, **changes: float) -> float:
    return float(learning_rate(kind, jnp.asarray(step - 1, jnp.int32), hyper(**changes)))


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("total", [1, 2, 3, 7])
def test_no_step_is_at_rate_0(kind, total):
    """Whatever the warm-up, also where the schedule ends at 0: a step at rate 0 trains nothing."""
    for warmup in range(total + 3):
        for step in range(1, total + 1):
            assert rate_of(step, kind, total_steps=total, warmup_steps=warmup) > 1e-4, (warmup, step)


@pytest.mark.parametrize("warmup", [0, 7, 10])
def test_the_stable_phase_knows_nothing_of_the_decay(warmup):
    """To the last bit, so that a run of any length and decay could have taken these steps."""
    runs = [
        {"total_steps": 1000, "decay_steps": 100},
        {"total_steps": 47, "decay_steps": 7, "final_share": 0.1},
        {"total_steps": 41, "decay_steps": 1, "decay_exponent": 0.5, "final_share": 0.3},
    ]
    for step in range(1, 41):
        rates = {rate_of(step, "wsd", warmup_steps=warmup, learning_rate=3e-4, **run) for run in runs}
        assert rates == {np.float32(3e-4) * np.float32(min(1, np.float32(step) / np.float32(max(warmup, 1))))}, step


def test_the_decay_of_wsd_is_that_of_transformers():
    """Their rate of the step after the decay has begun is ours a step earlier, which reaches the last share itself."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    theirs = transformers.get_wsd_schedule(
        optimizer, num_warmup_steps=10, num_decay_steps=20, num_training_steps=100, decay_type="linear"
    ).lr_lambdas[0]
    for step in range(1, 101):
        assert rate_of(step, "wsd") == pytest.approx(0.2 * theirs(step), abs=1e-6)


def test_the_decay_is_that_of_transformers():
    """Their rate at a count of steps done is ours of the step after it; only the warm-up begins a step earlier."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    for kind, make in (
        ("cosine", transformers.get_cosine_schedule_with_warmup),
        ("linear", transformers.get_linear_schedule_with_warmup),
    ):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
        theirs = make(optimizer, 10, 100).lr_lambdas[0]
        for done in range(10, 100):
            assert rate_of(done + 1, kind) == pytest.approx(0.2 * theirs(done), abs=1e-6)
        for done in range(10):
            assert rate_of(done + 1, kind) == pytest.approx(0.2 * theirs(done + 1), abs=1e-6)
