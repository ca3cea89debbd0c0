"""Steps on sampled answers beside a plain torch loop, with a row for each answer and a second model as reference."""

import numpy as np
import pytest
from rich.console import Console

from sft_jax.options import options_of
from sft_jax.preparation.run_data import load_data
from sft_jax.training import run
from tests import rollouts

STEPS, RATE, TEMPERATURE, KL, LOW, HIGH, LONGEST = 4, 2e-3, 0.8, 0.2, 0.2, 0.28, 8
NORMALIZE = {"tokens": "group_std", "examples": "leave_one_out", "constant": "batch_std"}


def config_for(root, normalize):
    return rollouts.config(
        root,
        **{
            "duration": f"{STEPS} steps",
            "mesh.fsdp": 4,
            "mesh.tensor": 2,
            "objective.normalize": normalize,
            "objective.clip_low": LOW,
            "objective.clip_high": HIGH,
            "objective.kl_weight": KL,
            "rollouts.temperature": TEMPERATURE,
            "rollouts.advantages": NORMALIZE[normalize],
            "optimizer.learning_rate": RATE,
            "optimizer.warmup": "0 steps",
            "optimizer.epsilon": 1e-6,
        },
    )


def advantages(rewards, kind):
    """Of rewards [prompts, group], worked out again."""
    means = rewards.mean(1, keepdims=True)
    others = (rewards.sum(1, keepdims=True) - rewards) / (rewards.shape[1] - 1)
    deviation = {"group_std": rewards.std(1, ddof=1, keepdims=True), "batch_std": rewards.std(ddof=1)}
    return rewards - others if kind == "leave_one_out" else (rewards - means) / (deviation[kind] + 1e-4)


def torch_steps(config, samples):
    """(loss, divergence, gradient norm) of each step, on the answers that the run drew."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    data = load_data(options_of(config))
    load = lambda: transformers.LlamaForCausalLM.from_pretrained(config.model.source, dtype=torch.float32)
    policy, reference = load(), load()
    optimizer = torch.optim.AdamW(policy.parameters(), RATE, tuple(config.optimizer.betas), 1e-6, weight_decay=0.0)
    prompts = {
        record.id: data.renderer.render_prompt(record.conversation[:-1]).tolist() for record in data.train_records
    }

    def of_tokens(model, one):
        prompt = prompts[one["id"]]
        logits = model(torch.tensor([prompt + one["tokens"]])).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
        return torch.log_softmax(logits, -1).gather(1, torch.tensor(one["tokens"])[:, None])[:, 0]

    found = []
    for of_step in samples.values():
        rewards = np.array([one["reward"] for one in of_step]).reshape(-1, 4)
        better = advantages(rewards, config.rollouts.advantages).reshape(-1)
        losses, divergences = [], []
        for one, advantage in zip(of_step, better, strict=True):
            now, drawn = of_tokens(policy, one), torch.tensor(one["logprobs"])
            with torch.no_grad():
                base = of_tokens(reference, one)
            ratio = torch.exp(now - drawn)
            gain = torch.minimum(ratio * advantage, torch.clamp(ratio, 1 - LOW, 1 + HIGH) * advantage)
            divergence = torch.exp(base - now) - (base - now) - 1
            losses.append(-gain + KL * divergence)
            divergences.append(divergence.detach())
        loss = {
            "tokens": torch.cat(losses).mean(),
            "examples": torch.stack([each.mean() for each in losses]).mean(),
            "constant": torch.cat(losses).sum() / (LONGEST * len(losses)),
        }[config.objective.normalize]
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        found.append((loss.item(), torch.cat(divergences).mean().item(), float(norm)))
    return np.array(found)


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_steps_agree(normalize, tmp_path):
    config = config_for(tmp_path, normalize)
    run(config, tmp_path / "run", console=Console(quiet=True))
    lines = [line for line in rollouts.lines_of(tmp_path / "run") if "train/reward" in line]
    ours = np.array([[line[f"train/{name}"] for name in ("loss", "kl", "grad_norm")] for line in lines])
    theirs = torch_steps(config, rollouts.samples_of(tmp_path / "run"))
    assert (np.abs(theirs[1:, 1]) > 1e-4).all()
    np.testing.assert_allclose(ours[:, 0], theirs[:, 0], atol=2e-5, rtol=0)
    np.testing.assert_allclose(ours[:, 1], theirs[:, 1], atol=2e-5, rtol=0)
    np.testing.assert_allclose(ours[:, 2], theirs[:, 2], rtol=1e-3)
