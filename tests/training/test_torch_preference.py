"""DPO beside a plain torch loop with two models and a row for each answer: the same losses, margins and norms."""

import json

import numpy as np
import pytest
from rich.console import Console

from benchmarks.torch_pairs import pairs_of, torch_dpo_steps
from sft_jax.options import options_of
from sft_jax.preparation import run_data
from sft_jax.training import run
from tests import preferences

STEPS, RATE, BETA = 5, 2e-3, 0.1


def config_for(root):
    return preferences.config(
        root,
        **{
            "duration": f"{STEPS} steps",
            "data.held_out": "",
            "checkpoint.best_metric": "",
            "mesh.fsdp": 4,
            "mesh.tensor": 2,
            "batch.sequences": 4,
            "optimizer.learning_rate": RATE,
            "optimizer.schedule": "constant",
            "optimizer.warmup": "0 steps",
            "optimizer.weight_decay": 0.0,
            "optimizer.epsilon": 1e-6,
            "optimizer.clip_norm": 1.0,
            "checkpoint.every": "1000 steps",
            "objective.beta": BETA,
        },
    )


def torch_steps(config):
    """Loss, margin, rewards and gradient norm of each step."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    data = run_data.load_data(options_of(config))
    load = lambda: transformers.LlamaForCausalLM.from_pretrained(config.model.source, dtype=torch.float32)
    pairs = pairs_of(data.examples)
    steps = [[pairs[row] for members in data.plan.batch_bins(step) for row in members] for step in range(STEPS)]
    numbers = {"learning_rate": RATE, "betas": config.optimizer.betas, "epsilon": config.optimizer.epsilon}
    return torch_dpo_steps(load(), load(), steps, beta=BETA, **numbers)


def test_five_steps_agree_with_torch(tmp_path):
    config = config_for(tmp_path)
    run(config, tmp_path / "run", console=Console(quiet=True))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    names = ("loss", "margin", "chosen_reward", "rejected_reward", "grad_norm")
    ours = np.array([[line[f"train/{name}"] for name in names] for line in lines])
    theirs = torch_steps(config)
    np.testing.assert_allclose(ours[:, 0], theirs[:, 0], atol=2e-5, rtol=0)
    np.testing.assert_allclose(ours[:, 1:4], theirs[:, 1:4], atol=1e-4, rtol=0)
    np.testing.assert_allclose(ours[:, 4], theirs[:, 4], rtol=1e-3)
    assert theirs[-1, 0] < theirs[0, 0] - 0.1, "it must have learnt something for the comparison to mean anything"
