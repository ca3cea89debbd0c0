"""Runs of the tiny model on answers that it samples itself, and rewards that any model can raise."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from configs.sft import reward
from tests import tiny


def asciiness(answer: str, case: object) -> dict[str, float]:
    """The share of characters below 128; a random model of bytes writes some of them."""
    return {"ascii": sum(ord(letter) < 128 for letter in answer) / len(answer) if answer else 0.0}


def config(root: Path, arg: str = "full", rewards: dict[str, ConfigDict] | None = None, **overrides) -> ConfigDict:
    """`tiny.config` for answers of a few tokens, judged by `asciiness` where no other rewards are given."""
    sampled = {
        "objective.name": "policy_gradient",
        "rollouts.prompts": 4,
        "rollouts.group": 4,
        "rollouts.max_new_tokens": 8,
        "rollouts.truncated": "train",
        "data.masking.train_on": "last",
        "data.held_out": "",
        "checkpoint.best_metric": "",
        "optimizer.schedule": "constant",
        "optimizer.weight_decay": 0.0,
        "evaluation.every": "0 steps",
    }
    made = tiny.config(root, arg, **(sampled | overrides)).unlock()
    made.rollouts.rewards.update(rewards or {"ascii": reward("tests.rollouts:asciiness")})
    return made.lock()


def lines_of(workdir: Path) -> list[dict]:
    """The log of a run, without what a clock says."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("speed/")} for line in lines]


def samples_of(workdir: Path) -> dict[str, list[dict]]:
    """The answers of each step, by the name of their file."""
    files = sorted((workdir / "samples").glob("*.jsonl"))
    return {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in files}
