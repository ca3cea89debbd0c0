"""A plain torch loop on judged answers, beside which runs are held: two models, and a whole row for each answer."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from sft_jax.options import options_of
from sft_jax.preparation import run_data

# Of a run that is compared: AdamW with a constant rate, and nothing else.
ADAMW = {
    "data.held_out": "",
    "checkpoint.best_metric": "",
    "checkpoint.every": "1000 steps",
    "batch.sequences": 4,
    "optimizer.learning_rate": 2e-3,
    "optimizer.schedule": "constant",
    "optimizer.warmup": "0 steps",
    "optimizer.weight_decay": 0.0,
    "optimizer.epsilon": 1e-6,
    "optimizer.clip_norm": 1.0,
}
LossOf = Callable[[Callable[[int, int], Any], Any, list[int]], tuple[Any, Any]]


def torch_steps(config: ConfigDict, steps: int, loss_of: LossOf) -> np.ndarray:
    """(loss, another number, gradient norm) of each step.

    `loss_of(ratio, examples, rows)` gives the first two of the rows of a step; `ratio(number, answer)` is the
    log-ratio of policy and reference that the answer of an example has, its branch of that number.
    """
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    data = run_data.load_data(options_of(config))
    load = lambda: transformers.LlamaForCausalLM.from_pretrained(config.model.source, dtype=torch.float32)
    policy, reference = load(), load()
    asked = config.optimizer
    adam = torch.optim.AdamW(
        policy.parameters(), asked.learning_rate, tuple(asked.betas), asked.epsilon, weight_decay=0.0
    )

    def of_answer(model, number, answer):
        (tokens, weights), branch = data.examples.example(number), data.examples.branches_of(number)
        inside = (branch == 0) | (branch == answer)
        ids, used = torch.tensor(tokens[inside][None]).long(), torch.tensor(weights[inside][1:] > 0)
        logs = torch.log_softmax(model(ids).logits[0, :-1], -1)
        return logs.gather(1, ids[0, 1:, None])[:, 0][used].sum()

    @functools.cache
    def of_reference(number, answer):
        with torch.no_grad():
            return of_answer(reference, number, answer)

    ratio = lambda number, answer: of_answer(policy, number, answer) - of_reference(number, answer)
    found, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)  # as many as such small products need
    try:
        for step in range(steps):
            rows = [int(member) for members in data.plan.batch_bins(step) for member in members]
            loss, other = loss_of(ratio, data.examples, rows)
            adam.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), asked.clip_norm)
            adam.step()
            found.append((loss.item(), other.item(), float(norm)))
    finally:
        torch.set_num_threads(threads)
    return np.array(found)


def assert_agrees(lines: list[dict], theirs: np.ndarray, other: str, learnt: float, **tolerance: float) -> None:
    """The log of a run has the numbers of `torch_steps`, the second of them to a tolerance of its own.

    The loss must have fallen by `learnt` for the comparison to mean anything.
    """
    ours = np.array([[line[f"train/{name}"] for name in ("loss", other, "grad_norm")] for line in lines])
    np.testing.assert_allclose(ours[:, 0], theirs[:, 0], atol=2e-5, rtol=0)
    np.testing.assert_allclose(ours[:, 1], theirs[:, 1], **{"rtol": 0.0} | tolerance)
    np.testing.assert_allclose(ours[:, 2], theirs[:, 2], rtol=1e-3)
    assert theirs[-1, 0] < theirs[0, 0] - learnt
