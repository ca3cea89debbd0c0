"""Pairs of answers for the tiny model, and runs on them."""

import json
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from tests import tiny

_WORDS = ["red", "blue", "seven", "cat", "tree", "I", "and", "of"]


def write_pairs(path: Path, count: int, seed: int = 0) -> Path:
    """Prompts whose preferred answer has their words reversed; the other one has some words of its own."""
    rng = np.random.default_rng(seed)
    draw = lambda most: [_WORDS[i] for i in rng.integers(0, len(_WORDS), rng.integers(2, most))]
    lines = []
    for _ in range(count):
        asked = draw(7)
        row = {"prompt": " ".join(asked), "chosen": " ".join(reversed(asked)), "rejected": " ".join(["no", *draw(5)])}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")
    return path


def config(root: Path, arg: str = "full", **overrides: object) -> ConfigDict:
    """`tiny.config` for DPO on such pairs, which are written below `root`."""
    if not (root / "pairs.jsonl").exists():
        root.mkdir(parents=True, exist_ok=True)
        write_pairs(root / "pairs.jsonl", 40)
        write_pairs(root / "held_out_pairs.jsonl", 10, seed=1)
    of_pairs = {
        "objective.name": "dpo",
        "data.train": str(root / "pairs.jsonl"),
        "data.held_out": str(root / "held_out_pairs.jsonl"),
        "data.sequence_length": 288,
        "checkpoint.best_metric": "held_out/loss",
    }
    return tiny.config(root, arg, **(of_pairs | overrides))
