"""DPO beside a plain torch loop with two models and a row for each answer: the same losses, margins and norms."""

import json

import numpy as np
import pytest
from rich.console import Console

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
    """(loss, margin, gradient norm) of each step."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    data = run_data.load_data(options_of(config))
    load = lambda: transformers.LlamaForCausalLM.from_pretrained(config.model.source, dtype=torch.float32)
    policy, reference = load(), load()
    optimizer = torch.optim.AdamW(policy.parameters(), RATE, tuple(config.optimizer.betas), 1e-6, weight_decay=0.0)

    def of_answer(model, number, answer):
        (tokens, weights), branch = data.examples.example(number), data.examples.branches_of(number)
        inside = (branch == 0) | (branch == answer)
        ids, used = torch.tensor(tokens[inside][None]).long(), torch.tensor(weights[inside][1:] > 0)
        logs = torch.log_softmax(model(ids).logits[0, :-1], -1)
        return logs.gather(1, ids[0, 1:, None])[:, 0][used].sum()

    found = []
    for step in range(STEPS):
        pairs = [int(member) for members in data.plan.batch_bins(step) for member in members]
        margins = []
        for number in pairs:
            with torch.no_grad():
                base = of_answer(reference, number, 1) - of_answer(reference, number, 2)
            margins.append(BETA * (of_answer(policy, number, 1) - of_answer(policy, number, 2) - base))
        margins = torch.stack(margins)
        loss = -torch.nn.functional.logsigmoid(margins).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        found.append((loss.item(), margins.mean().item(), float(norm)))
    return np.array(found)


def test_five_steps_agree_with_torch(tmp_path):
    config = config_for(tmp_path)
    run(config, tmp_path / "run", console=Console(quiet=True))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    ours = np.array([[line[f"train/{name}"] for name in ("loss", "margin", "grad_norm")] for line in lines])
    theirs = torch_steps(config)
    np.testing.assert_allclose(ours[:, 0], theirs[:, 0], atol=2e-5, rtol=0)
    np.testing.assert_allclose(ours[:, 1], theirs[:, 1], atol=1e-4, rtol=0)
    np.testing.assert_allclose(ours[:, 2], theirs[:, 2], rtol=1e-3)
    assert theirs[-1, 0] < theirs[0, 0] - 0.1, "it must have learnt something for the comparison to mean anything"
