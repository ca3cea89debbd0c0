"""DPO beside a plain torch loop with two models and a row for each answer: the same losses, margins and norms."""

import json

import pytest
from rich.console import Console

from sft_jax.training import run
from tests import preferences
from tests.training.torch_answers import ADAMW, assert_agrees, torch_steps

STEPS, BETA = 5, 0.1


def loss_of(ratio, _, rows):
    """The loss and the mean margin."""
    torch = pytest.importorskip("torch")
    margins = torch.stack([BETA * (ratio(number, 1) - ratio(number, 2)) for number in rows])
    return -torch.nn.functional.logsigmoid(margins).mean(), margins.mean()


def test_five_steps_agree_with_torch(tmp_path):
    sizes = {"duration": f"{STEPS} steps", "mesh.fsdp": 4, "mesh.tensor": 2}
    config = preferences.config(tmp_path, **ADAMW | sizes | {"objective.beta": BETA})
    run(config, tmp_path / "run", console=Console(quiet=True))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert_agrees(lines, torch_steps(config, STEPS, loss_of), "margin", learnt=0.1, atol=1e-4)
