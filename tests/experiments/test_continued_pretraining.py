"""The experiment on continued pretraining, in small: its texts, its runs, its table."""

import json

import numpy as np
import pytest
from rich.console import Console

from experiments.continued_pretraining import replay
from experiments.continued_pretraining.texts import HELD_OUT_FILE, NEW, OLD, modules, texts_of, titles, write_texts
from sft_jax.runs.result import read_result
from tests import tiny

SMALL = {
    "duration": "2 steps",
    "data.sequence_length": 128,
    "data.cache": "",
    "batch.sequences": 8,
    "batch.micro_batches": 1,
    "precision.matmul": "float32",
    "adapter.rank": 2,
    "optimizer.warmup": "1 steps",
    "evaluation.every": "2 steps",
}


def test_texts_are_the_same_each_time_and_held_out_ones_are_not_trained_on(tmp_path):
    new, old = titles(6, seed=0), modules(5, seed=0)
    assert (new, old) == (titles(6, seed=0), modules(5, seed=0))
    assert (len(set(new)), len(set(old))) == (6, 5)
    assert all("def " in text or "import" in text for text in old)
    write_texts(tmp_path, new, old, held_out=2, held_out_characters=50)
    assert texts_of(str(tmp_path / f"{NEW}.jsonl")) == new[2:]
    assert texts_of(str(tmp_path / f"{OLD}.jsonl")) == old[2:]
    rows = [json.loads(line) for line in (tmp_path / HELD_OUT_FILE).read_text().splitlines()]
    assert rows == [
        {"text": text[:50], "source": source} for source, texts in ((NEW, new), (OLD, old)) for text in texts[:2]
    ]
    with pytest.raises(ValueError, match="general: 2 texts, expected more than the 2"):
        write_texts(tmp_path, new, old[:2], held_out=2, held_out_characters=50)


def test_a_file_of_the_users_own(tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n\n{"text": " "}\n{"text": "b", "id": 1}\n')
    assert texts_of(str(tmp_path / "texts.jsonl")) == ["a", "b"]
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n{"words": "b"}\n')
    with pytest.raises(ValueError, match=r'texts.jsonl:2: expected {"text": "…"}, got \'{"words": "b"}\''):
        texts_of(str(tmp_path / "texts.jsonl"))


def test_both_runs_are_trained_and_measured(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    write_texts(out, titles(8, seed=0), modules(6, seed=0), held_out=3, held_out_characters=100)
    model = str(tiny.config(tmp_path).model.source)
    results = replay.experiment(out, model, SMALL, Console(quiet=True))
    assert json.loads((out / "results.json").read_text()) == results
    for source, scores in results.items():
        base, without = scores[replay.BASE], scores[replay.WITHOUT]
        assert base["low"] < base["value"] < base["high"]
        difference = scores[f"{replay.WITHOUT} - {replay.BASE}"]["value"]
        assert difference == pytest.approx(without["value"] - base["value"], abs=1e-9)
        # The run's own evaluation measures the same, in sequences that texts share.
        at_end = read_result(out / "without_replay").metrics[f"held_out/loss/{source}"]
        assert without["value"] == pytest.approx(at_end, rel=1e-5)
    assert results[NEW][f"{replay.WITHOUT} - {replay.BASE}"]["high"] < 0
    seen = {name: read_result(out / name).counters for name in ("without_replay", "with_replay")}
    assert seen["without_replay"][f"tokens/{OLD}"] == 0 < seen["with_replay"][f"tokens/{OLD}"]
    assert seen["without_replay"]["epochs/domain"] > seen["with_replay"]["epochs/domain"]


def test_differences_are_of_pairs():
    """A model that is better by nearly the same on every text is better without doubt, however much texts differ."""
    rng = np.random.default_rng(0)
    base = np.stack([rng.uniform(50, 500, 30), np.full(30, 100.0)], axis=1)
    better = base - np.stack([rng.uniform(9, 11, 30), np.zeros(30)], axis=1)
    losses = {replay.BASE: {NEW: base, OLD: base}, replay.WITHOUT: {NEW: better, OLD: base}}
    losses[replay.WITH] = losses[replay.WITHOUT]
    scores = replay.compare(losses)[NEW]
    wide, narrow = scores[replay.BASE], scores[f"{replay.WITHOUT} - {replay.BASE}"]
    assert wide["high"] - wide["low"] > 0.5
    assert narrow["value"] == pytest.approx(-0.1, abs=0.01)
    assert narrow["high"] - narrow["low"] < 0.01
