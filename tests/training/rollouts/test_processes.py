"""Several processes sample the same answers as one, and train them as one does."""

import jax
import numpy as np
import pytest

from sft_jax.training import run
from tests import rollouts
from tests.ports import free_address

# Rates at which a difference by rounding is not blown up from step to step.
OVERRIDES = {"duration": "3 steps", "optimizer.learning_rate": 1e-3, "execution.layer_layout": "scan"}


@pytest.mark.slow
def test_two_processes(tmp_path, children):
    run(rollouts.config(tmp_path, **OVERRIDES), tmp_path / "alone", devices=jax.devices()[:4])
    spec = {"config": "tests.rollouts:config", "root": str(tmp_path), "workdir": str(tmp_path / "together")}
    spec |= {"overrides": OVERRIDES, "devices": 2, "coordinator": free_address()}
    calls = [("tests.training.driver:train", spec | {"process": number}) for number in range(2)]
    for end in children.run(calls):
        assert end.status == 0, end.output[-3000:]
    together, alone = (rollouts.samples_of(tmp_path / name) for name in ("together", "alone"))
    assert together.keys() == alone.keys()
    for name, answers in alone.items():
        assert [one["tokens"] for one in together[name]] == [one["tokens"] for one in answers]
        assert [one["advantage"] for one in together[name]] == [one["advantage"] for one in answers]
    lines = zip(*(rollouts.lines_of(tmp_path / name) for name in ("together", "alone")), strict=True)
    for found, expected in lines:
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            if "gap" not in name:  # which is rounding itself
                np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
