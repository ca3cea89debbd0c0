"""Learning-rate schedules."""

import jax.numpy as jnp
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
