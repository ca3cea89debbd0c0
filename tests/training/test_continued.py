"""Continued pretraining with replay: two sources by weights, and the held-out loss of each by itself."""

import json

import numpy as np
import pytest
from rich.console import Console

from configs import continued
from sft_jax.runs.metric_log import read_metrics
from sft_jax.runs.result import read_result
from sft_jax.training import run
from tests import tiny

QUIET = Console(quiet=True)


def write_texts(path, source, letters, count, seed):
    """Texts of two letters, most of them longer than a sequence."""
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list(letters), size)) for size in rng.integers(20, 200, count)]
    path.write_text("".join(json.dumps({"text": text, "source": source}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    made = tmp_path_factory.mktemp("continued")
    tiny.config(made)
    for name, letters in (("domain", "ab"), ("general", "xyz")):
        write_texts(made / f"{name}.jsonl", name, letters, 40, seed=0)
        write_texts(made / f"{name}_test.jsonl", name, letters, 6, seed=1)
    return made


def config(root, **changes):
    made = continued.get_config("lora,replay")
    held_out = [str(root / f"{name}_test.jsonl") for name in ("domain", "general")]
    of_size = {
        "duration": "10 steps",
        "data.sequence_length": 64,
        "data.cache": "",
        "batch.sequences": 8,
        "adapter.rank": 4,
        "optimizer.learning_rate": 2e-2,
        "optimizer.warmup": "2 steps",
        "evaluation.every": "10 steps",
    }
    with made.unlocked():
        made.model.source = str(root / "model")
        made.data.mixture.domain.path = str(root / "domain.jsonl")
        made.data.mixture.general.path = str(root / "general.jsonl")
        made.data.held_out = ",".join(held_out)
        made.update_from_flattened_dict(of_size | changes)
    return made


@pytest.fixture(scope="module")
def runs(root):
    """The same run with replay, and with the weight 0 of what is replayed."""
    for name, changes in (("with", {}), ("without", {"data.mixture.general.weight": "0"})):
        run(config(root, **changes), root / name, console=QUIET)
    return {name: read_metrics(root / name / "metrics.jsonl") for name in ("with", "without")}


def test_each_source_is_measured_by_itself(root, runs):
    """Logged and in the result; together they are the loss of all held-out tokens, of which none is left out."""
    characters = {
        name: sum(len(json.loads(line)["text"]) for line in (root / f"{name}_test.jsonl").read_text().splitlines())
        for name in ("domain", "general")
    }  # as many targets as characters: the first of a text is none, the end behind it is one
    for name, lines in runs.items():
        last, result = lines[-1], read_result(root / name).metrics
        losses = {source: last[f"held_out/loss/{source}"] for source in characters}
        assert {source: result[f"held_out/loss/{source}"] for source in characters} == losses
        together = sum(losses[source] * count for source, count in characters.items()) / sum(characters.values())
        assert last["held_out/loss"] == pytest.approx(together, rel=1e-6)


def test_what_is_replayed_is_kept(runs):
    """The new domain is learnt either way; the old one better where a share of it is trained on."""
    fell = {
        (name, source): lines[-1][f"held_out/loss/{source}"] - lines[0][f"held_out/loss/{source}"]
        for name, lines in runs.items()
        for source in ("domain", "general")
    }
    assert fell["with", "domain"] < -1 > fell["without", "domain"]
    assert fell["with", "general"] < fell["without", "general"] - 0.5


def test_shares_are_those_of_the_weights(runs):
    last = {name: lines[-1] for name, lines in runs.items()}
    of = {name: [last[name][f"progress/tokens/{source}"] for source in ("domain", "general")] for name in last}
    assert of["with"][1] / sum(of["with"]) == pytest.approx(0.25, abs=0.05)
    assert of["without"][1] == 0
    assert "train/loss/general" in last["with"]
    assert not any("train/loss/general" in line for line in runs["without"])
