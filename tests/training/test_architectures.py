"""A small random model of every architecture learns something of the quickstart's documents, goes on where it was left,
and is exported to what torch loads."""

import json

import numpy as np
import pytest
from etils import epath

from experiments.quickstart.documents import make_documents, to_row
from sft_jax.models.families import FAMILIES
from sft_jax.runs.metric_log import read_metrics
from sft_jax.training import run
from tests import tiny
from tests.exports.conftest import export, torch_logits
from tests.exports.test_model import our_logits
from tests.models import families
from tests.models.test_families import FIRST

IDS = np.random.default_rng(5).integers(0, 300, (2, 24)).astype(np.int32)
STEPS, LONGEST = 12, 80
FAST = ("gpt_oss",)


def shortened(row):
    """The first characters of a document, and of what is asked of it."""
    question, answer = (message["content"] for message in row["messages"])
    document = question.partition("\n\n")[2]
    return {"prompt": document[:LONGEST], "completion": answer[:LONGEST]}


def prepared(root, case):
    """A directory with a config and no weights, and documents."""
    fields = families.text_config(case)
    tiny.write_checkpoint(root / "model")
    (root / "model" / "model.safetensors").unlink()
    (root / "model" / "config.json").write_text(json.dumps(fields | {"initializer_range": 0.1}))
    for name, documents in zip(("train", "held_out"), make_documents(48, 8, seed=0), strict=True):
        rows = [shortened(to_row(document)) for document in documents]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def losses(workdir):
    return {
        line["step"]: line["train/loss"] for line in read_metrics(workdir / "metrics.jsonl") if "train/loss" in line
    }


@pytest.mark.parametrize(
    "case",
    [
        name if families.CASES[name][0]["model_type"] in FAST else pytest.param(name, marks=pytest.mark.slow)
        for name in FIRST
        if families.CASES[name][0]["model_type"] in FAMILIES
    ],
)
def test_it_learns_goes_on_and_is_exported(case, tmp_path):
    prepared(tmp_path, case)
    overrides = {
        "model.source": f"random:{tmp_path / 'model'}",
        "duration": f"{STEPS} steps",
        "evaluation.every": f"{STEPS} steps",
        "checkpoint.every": f"{STEPS // 2} steps",
        "data.sequence_length": 192,
        "optimizer.learning_rate": 3e-3,
    }
    config = tiny.config(tmp_path, **overrides)
    run(config, tmp_path / "whole")
    run(config, tmp_path / "parts", stop_after=STEPS // 2)
    run(config, tmp_path / "parts")
    whole = losses(tmp_path / "whole")
    assert list(whole) == list(range(1, STEPS + 1))
    assert losses(tmp_path / "parts") == whole
    assert whole[STEPS] < 0.9 * whole[1]
    exported = export(epath.Path(tmp_path / "whole"), tmp_path / "out")
    assert exported.drift.same_choice == 1
    np.testing.assert_allclose(torch_logits(tmp_path / "out", IDS), our_logits(tmp_path / "whole"), atol=1e-4)
