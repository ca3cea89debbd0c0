"""The objective that docs/extending.md shows runs as it stands there."""

import re
from pathlib import Path
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax import objectives
from sft_jax.training import run
from tests import preferences, tiny

DOCS = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture
def shown():
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if "OBJECTIVES[" in c)
    with mock.patch.dict(objectives.OBJECTIVES):
        exec(compile(code, str(DOCS), "exec"), {})
        yield objectives.OBJECTIVES["dynamic_fine_tuning"]


def test_uniform_two_way_logits_halve_the_loss(shown):
    logits, targets, weights = jnp.zeros((1, 3, 2)), jnp.zeros((1, 3), jnp.int32), jnp.ones((1, 3))
    total, count = shown(logits, targets, weights, objectives.Settings())["loss"]
    np.testing.assert_allclose(float(total / count), np.log(2) / 2, rtol=1e-6)


def test_a_run_trains_with_it(shown, tmp_path):
    config = tiny.config(tmp_path, "full", **{"objective.name": "dynamic_fine_tuning", "duration": "2 steps"})
    assert run(config, tmp_path / "run").step == 2


def test_a_run_trains_with_the_method_of_pairs(tmp_path):
    (code,) = (
        c for c in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if "METHODS[" in c and "Method(" in c
    )
    with mock.patch.dict(objectives.METHODS):
        exec(compile(code, str(DOCS), "exec"), {})
        config = preferences.config(tmp_path, "lora", **{"objective.name": "exponential", "duration": "2 steps"})
        result = run(config, tmp_path / "run")
    assert result.step == 2
    assert result.metrics["held_out/loss"] < 1  # which it is at the start
