"""Distillation beside a plain torch loop with two models of different families and a row for each conversation."""

import json

import numpy as np
import pytest

from sft_jax.options import options_of
from sft_jax.preparation import run_data
from sft_jax.training import run
from tests import distillation, tiny
from tests.distillation import QUIET

STEPS, RATE, TEMPERATURE, SHARE = 5, 2e-3, 2.0, 0.25
CASES = {  # (objective, top_k, family of the teacher)
    "in the step": ("forward_kl", 0, "qwen2"),
    "mixed": ("jensen_shannon", 0, "gemma2"),
    "most likely tokens": ("reverse_kl", 4, "qwen2"),
}


def config_for(root, name, top_k, family):
    from tests.models import families

    made = distillation.config(
        root,
        **{
            "duration": f"{STEPS} steps",
            "objective.name": name,
            "objective.temperature": TEMPERATURE,
            "objective.cross_entropy_share": SHARE,
            "teacher.source": str(root / "family"),
            "teacher.top_k": top_k,
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
            "checkpoint.every": "1000 steps",
        },
    )
    families.save(families.torch_model(family), root / "family")
    tiny.tokenizer().save_pretrained(root / "family")
    return made


def divergence_of(torch, name, p, q):
    """Of probabilities p of the teacher and q of the student, by its formula."""
    kl = lambda a, b: (a * (a / b).log()).sum(-1)
    if name == "jensen_shannon":
        return 0.5 * kl(p, 0.5 * (p + q)) + 0.5 * kl(q, 0.5 * (p + q))
    return kl(p, q) if name == "forward_kl" else kl(q, p)


def torch_steps(config):
    """(loss, divergence, gradient norm) of each step."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    data, top_k = run_data.load_data(options_of(config)), config.teacher.top_k
    load = lambda source: transformers.AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, attn_implementation="eager"
    )
    student, teacher = load(config.model.source), load(config.teacher.source)
    optimizer = torch.optim.AdamW(student.parameters(), RATE, tuple(config.optimizer.betas), 1e-6, weight_decay=0.0)

    def of_row(number):
        tokens, weights = data.examples.example(number)
        ids, used = torch.tensor(tokens[None]).long(), torch.tensor(weights[1:] > 0)
        logits = student(ids).logits[0, :-1][used]
        with torch.no_grad():
            p = torch.softmax(teacher(ids).logits[0, :-1][used] / TEMPERATURE, -1)
        q = torch.softmax(logits / TEMPERATURE, -1)
        if top_k:
            best = p.topk(top_k).indices
            p, q = (torch.cat([x.gather(1, best), 1 - x.gather(1, best).sum(1, keepdim=True)], 1) for x in (p, q))
        nll = torch.nn.functional.cross_entropy(logits, ids[0, 1:][used], reduction="none")
        return TEMPERATURE**2 * divergence_of(torch, config.objective.name, p, q), nll

    found = []
    for step in range(STEPS):
        rows = [of_row(int(member)) for members in data.plan.batch_bins(step) for member in members]
        divergence, nll = (torch.cat(each).mean() for each in zip(*rows, strict=True))
        loss = (1 - SHARE) * divergence + SHARE * nll
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        found.append((loss.item(), divergence.item(), float(norm)))
    return np.array(found)


OFTEN = ("most likely tokens",)
EVERY = [case if case in OFTEN else pytest.param(case, marks=pytest.mark.slow) for case in CASES]


@pytest.mark.parametrize("case", EVERY)
def test_five_steps_agree_with_torch(case, tmp_path):
    pytest.importorskip("torch")
    config = config_for(tmp_path, *CASES[case])
    run(config, tmp_path / "run", console=QUIET)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    ours = np.array([[line[f"train/{name}"] for name in ("loss", "divergence", "grad_norm")] for line in lines])
    theirs = torch_steps(config)
    np.testing.assert_allclose(ours[:, :2], theirs[:, :2], atol=2e-5, rtol=0)
    np.testing.assert_allclose(ours[:, 2], theirs[:, 2], rtol=1e-3)
    assert theirs[-1, 0] < theirs[0, 0] - 0.05, "it must have learnt something for the comparison to mean anything"
