"""Runs of the tiny model on answers that it samples itself."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from configs.sft import reward
from tests import tiny

_LETTERS = "abcdefghijklm"


def share_of_vowels(answer: str, case: object) -> dict[str, float]:
    """A reward that any model can raise: the share of the answer's characters that are a, e, i, o, u."""
    return {"vowels": sum(letter in "aeiou" for letter in answer) / len(answer) if answer else 0.0}


def asciiness(answer: str, case: object) -> dict[str, float]:
    """Likewise: the share of characters below 128."""
    return {"ascii": sum(ord(letter) < 128 for letter in answer) / len(answer) if answer else 0.0}


def config(root: Path, arg: str = "full", **overrides: object) -> ConfigDict:
    """`tiny.config` for answers of a few tokens, judged by `asciiness`."""
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
    }
    made = tiny.config(root, arg, **(sampled | overrides)).unlock()
    if not made.rollouts.rewards:
        made.rollouts.rewards.ascii = reward("tests.rollouts:asciiness")
    return made.lock()


def lines_of(workdir: Path) -> list[dict]:
    """The log of a run without what a clock says."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timed = ("speed/", "time", "wall")
    return [{name: value for name, value in line.items() if not name.startswith(timed)} for line in lines]


def samples_of(workdir: Path) -> dict[str, list[dict]]:
    """Files of samples by their names."""
    files = sorted((workdir / "samples").glob("*.jsonl"))
    return {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in files}
