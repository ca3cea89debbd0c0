"""Compares twenty float32 steps of DPO on SmolLM2-135M with a plain torch loop, and with TRL, on the same pairs.

    python -m benchmarks.preference_agreement

All weights are trained. The torch loop has two models and a row for each answer, and nothing of ours but the tokens and
the order of the pairs. TRL takes the first step, where all rewards are 0 and the norm of the gradient says whether it
is the same one.
"""

import concurrent.futures
import json
import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks.steps import write_model
from benchmarks.torch_pairs import Pair, pairs_of, torch_dpo_steps, with_whole_embedding
from benchmarks.trl_steps import first_dpo_steps

_STEPS = flags.DEFINE_integer("steps", 20, "Optimizer steps.", lower_bound=1)
_PART = flags.DEFINE_integer(
    "part", 1, "Of layers and vocabulary: 5 is the first fifth; 1: the whole model.", lower_bound=1
)

PAIRS, LENGTH = 2, 96  # of a step; tokens of the sequence of each
BETA, RATE, BETAS, EPSILON = 0.1, 2e-6, (0.9, 0.95), 1e-8
METRICS = ("loss", "margin", "chosen_reward", "rejected_reward", "grad_norm")
# Of losses, of margins and rewards, and of the norm of the gradient, relative to it.
OF_TORCH, OF_TRL = (2e-5, 1e-4, 1e-4), (1e-4, 1e-4, 1e-4)

Measured = np.ndarray  # [steps, METRICS]


def main(_: list[str]) -> None:
    """Trains all three, one after another, and prints the largest differences.

    Raises:
        SystemExit: one is larger than its tolerance.
    """
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        write_model(root / "model", _PART.value)
        _write_pairs(root / "pairs.jsonl", _STEPS.value * PAIRS)
        ours, steps = _apart(_ours, root, _STEPS.value)
        print("ours", *(f"{loss:.6f}" for loss in ours[:, 0]), flush=True)
        trl = _apart(_trl, root, steps[:1])
        good = _show("ours to TRL, first step", ours[:1], trl, OF_TRL)
        torch = _apart(_torch, root, steps)
    print("torch", *(f"{loss:.6f}" for loss in torch[:, 0]))
    good &= _show("ours to torch, all steps", ours, torch, OF_TORCH)
    if not good:
        raise SystemExit(1)


def _show(name: str, one: Measured, other: Measured, tolerances: tuple[float, float, float]) -> bool:
    """Prints by how much they differ at most; whether it is within the tolerances."""
    off = np.abs(one - other)
    largest = (off[:, 0].max(), off[:, 1:4].max(), (off[:, 4] / other[:, 4]).max())
    words = (
        "{}: losses {:.1e}, margins and rewards {:.1e}, gradient norm (relative) {:.1e}; at most {:.0e}, {:.0e}, {:.0e}"
    )
    print(words.format(name, *largest, *tolerances), flush=True)
    return all(found <= tolerance for found, tolerance in zip(largest, tolerances, strict=True))


def _apart(function: Callable, *arguments: Any) -> Any:
    """What a function gives in a process of its own, so that no two have their models in memory."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _write_pairs(path: Path, count: int) -> None:
    """Questions with the right answer, and with that to the question before."""
    from experiments.quickstart.documents import make_documents

    facts = [document.facts for document in make_documents(count, 0, seed=0)[0]]
    rows = [
        {
            "prompt": f"The {title.year} {title.make} {title.model} is {title.owner}'s. Whose is it?",
            "chosen": f"It belongs to {title.owner}.",
            "rejected": f"It belongs to {other.owner}.",
        }
        for title, other in zip(facts, [facts[-1], *facts], strict=False)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _ours(root: Path, steps: int) -> tuple[Measured, list[list[Pair]]]:
    """What a run of ours logs, and the pairs of its steps."""
    from rich.console import Console

    from configs import preference
    from sft_jax.options import options_of
    from sft_jax.preparation.run_data import load_data
    from sft_jax.training import run

    config = preference.get_config("full").copy_and_resolve_references()
    settings = {
        "model.source": str(root / "model"),
        "data.train": str(root / "pairs.jsonl"),
        "data.cache": "",
        "data.sequence_length": LENGTH,
        "data.packing": "none",
        "batch.sequences": PAIRS,
        "duration": f"{steps} steps",
        "objective.beta": BETA,
        "optimizer.learning_rate": RATE,
        "optimizer.betas": BETAS,
        "optimizer.epsilon": EPSILON,
        "optimizer.schedule": "constant",
        "optimizer.warmup": "0 steps",
        "precision.matmul": "float32",
        "checkpoint.best_metric": "",
        "checkpoint.every": "1000 steps",
    }
    config.update_from_flattened_dict(settings)
    data = load_data(options_of(config.lock()))
    run(config, root / "run", data=data, console=Console(quiet=True))
    lines = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
    pairs = pairs_of(data.examples)
    members = [[pairs[row] for rows in data.plan.batch_bins(step) for row in rows] for step in range(steps)]
    return np.array([[line[f"train/{name}"] for name in METRICS] for line in lines]), members


def _torch(root: Path, steps: list[list[Pair]]) -> Measured:
    """The plain loop."""
    import torch
    import transformers

    load = lambda: with_whole_embedding(
        transformers.AutoModelForCausalLM.from_pretrained(root / "model", dtype=torch.float32)
    )
    numbers = {"beta": BETA, "learning_rate": RATE, "betas": BETAS, "epsilon": EPSILON}
    return torch_dpo_steps(load(), load(), steps, **numbers)


def _trl(root: Path, steps: list[list[Pair]]) -> Measured:
    numbers = {"beta": BETA, "learning_rate": RATE, "adam_beta1": BETAS[0], "adam_beta2": BETAS[1]}
    return first_dpo_steps(str(root / "model"), steps, adam_epsilon=EPSILON, **numbers)


if __name__ == "__main__":
    app.run(main)
