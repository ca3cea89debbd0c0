"""Fifty steps beside a plain torch loop on the same batches: the same losses."""

import json
import math

import jax
import numpy as np
import pytest

from sft_jax.data.batches import train_batches
from sft_jax.options import options_of
from sft_jax.preparation import run_data
from sft_jax.training import run
from tests import tiny

STEPS, WARMUP, PEAK, FINAL = 50, 5, 5e-3, 0.1


def config_for(root):
    return tiny.config(
        root,
        **{
            "duration": f"{STEPS} steps",
            "data.held_out": "",
            "data.sequence_length": 96,
            "mesh.fsdp": 4,
            "mesh.tensor": 2,
            "batch.sequences": 4,
            "optimizer.learning_rate": PEAK,
            "optimizer.warmup": f"{WARMUP} steps",
            "optimizer.final_share": FINAL,
            "optimizer.weight_decay": 0.1,
            "optimizer.epsilon": 1e-6,
            "optimizer.clip_norm": 1.0,
            "checkpoint.every": "1000 steps",
        },
    )


def torch_losses(config) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of AdamW in torch on transformers' Llama."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    data = run_data.load_data(options_of(config))
    model = transformers.LlamaForCausalLM.from_pretrained(
        config.model.source, dtype=torch.float32, attn_implementation="eager"
    )
    decayed = [p for name, p in model.named_parameters() if "norm" not in name]
    kept = [p for name, p in model.named_parameters() if "norm" in name]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}],
        betas=tuple(config.optimizer.betas),
        eps=1e-6,
    )
    losses, norms = [], []
    for step, batch in enumerate(train_batches(data.examples, data.plan, end_step=STEPS)):
        warm = min((step + 1) / WARMUP, 1.0)
        progress = max(step - WARMUP, 0) / (STEPS - WARMUP)
        rate = PEAK * warm * (FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        tokens, segments = torch.tensor(batch["tokens"]).long(), torch.tensor(batch["segment_ids"])
        size = tokens.shape[1]
        seen = (segments[:, :, None] == segments[:, None, :]) & torch.ones(size, size, dtype=torch.bool).tril()
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]
        logits = model(
            input_ids=tokens, position_ids=torch.tensor(batch["positions"]).long(), attention_mask=mask
        ).logits
        log_p = torch.log_softmax(logits, dim=-1)
        slots, targets = torch.tensor(batch["target_slots"]).long(), torch.tensor(batch["targets"]).long()
        weights = torch.tensor(batch["weights"])
        line = torch.arange(tokens.shape[0])[:, None]
        loss = -(log_p[line, slots, targets] * weights).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
        losses.append(loss.item())
    return losses, norms


@pytest.mark.slow
def test_fifty_steps_agree_with_torch(tmp_path):
    config = config_for(tmp_path)
    run(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses, norms = torch_losses(config)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    np.testing.assert_allclose([line["train/loss"] for line in lines], losses, atol=1e-3, rtol=0)
    np.testing.assert_allclose([line["train/grad_norm"] for line in lines], norms, rtol=2e-2)
    assert losses[-1] < losses[0] - 2, "it must have learnt something for the comparison to mean anything"
    assert max(norms) > 1.5, "clipping must have happened"
    assert jax.device_count() == 8
