"""Answers that were judged, in pairs and one by one, for the tiny model, and runs on them."""

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


def write_labelled(path: Path, count: int, seed: int = 0) -> Path:
    """The answers of `write_pairs`, each by itself: of every other prompt the one that is preferred."""
    rows = [json.loads(line) for line in write_pairs(path, count, seed).read_text().splitlines()]
    labelled = [
        {"prompt": row["prompt"], "completion": row["rejected" if number % 2 else "chosen"], "label": number % 2 == 0}
        for number, row in enumerate(rows)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in labelled))
    return path


def write_margins(path: Path, count: int, seed: int = 0) -> Path:
    """The pairs of `write_pairs`, of which every third has a margin."""
    rows = [json.loads(line) for line in write_pairs(path, count, seed).read_text().splitlines()]
    rows = [row | ({} if number % 3 else {"margin": 0.5}) for number, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def reward_config(root: Path, arg: str = "full", **overrides: object) -> ConfigDict:
    """`config` for a reward model, on pairs some of which have margins."""
    if not (root / "margins.jsonl").exists():
        root.mkdir(parents=True, exist_ok=True)
        write_margins(root / "margins.jsonl", 40)
    of_scores = {"objective.name": "reward", "model.head": "score", "data.train": str(root / "margins.jsonl")}
    return config(root, arg, **(of_scores | overrides))


def labelled_config(root: Path, arg: str = "full", **overrides: object) -> ConfigDict:
    """`config` for KTO on such answers, which are written below `root`."""
    if not (root / "labelled.jsonl").exists():
        root.mkdir(parents=True, exist_ok=True)
        write_labelled(root / "labelled.jsonl", 40)
        write_labelled(root / "held_out_labelled.jsonl", 10, seed=1)
    of_answers = {
        "objective.name": "kto",
        "data.train": str(root / "labelled.jsonl"),
        "data.held_out": str(root / "held_out_labelled.jsonl"),
    }
    return config(root, arg, **(of_answers | overrides))


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
