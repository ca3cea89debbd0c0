"""Runs of Gemma 4 on several devices: the same losses whatever the mesh, the layout and the remat policy."""

import numpy as np
import pytest

from sft_jax.runs.metric_log import read_metrics
from sft_jax.training import run
from tests import tiny
from tests.models import families

TARGETS = ("attention/.*", "(ffn|shared)/.*")
SHARED, EXPERTS = "gemma4_text with shared keys", "gemma4_text with experts"
# name -> (model, config, options)
CASES = {
    "shared keys, split sequences": (
        SHARED,
        "full",
        {"mesh.fsdp": 2, "mesh.context": 2, "mesh.tensor": 2, "execution.remat": "full"},
    ),
    "shared keys, adapters": (
        SHARED,
        "lora",
        {"mesh.fsdp": 4, "mesh.tensor": 2, "execution.layer_layout": "unrolled", "execution.remat": "products"},
    ),
    "experts": (EXPERTS, "full", {"mesh.fsdp": 2, "mesh.expert": 2, "mesh.tensor": 2}),
    "experts, adapters": (EXPERTS, "lora", {"mesh.fsdp": 2, "mesh.expert": 4, "execution.remat": "attention_products"}),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("gemma4")
    for case in (SHARED, EXPERTS):
        families.save(families.torch_model(case), root / case / "model")
        tiny.tokenizer().save_pretrained(root / case / "model")
        tiny.write_rows(root / case / "train.jsonl", 24)
        tiny.write_rows(root / case / "held_out.jsonl", 8, seed=1)
    return root


def losses(root, workdir, arg, **overrides):
    changes = {"adapter.targets": (*TARGETS, "per_layer/.*")} if arg == "lora" and SHARED in str(root) else {}
    config = tiny.config(root, arg, duration="3 steps", **{"checkpoint.best_metric": ""} | changes | overrides)
    run(config, workdir)
    found = [line["train/loss"] for line in read_metrics(workdir / "metrics.jsonl") if "train/loss" in line]
    assert len(found) == 3
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_mesh_gives_the_losses_of_weights_that_are_not_split(root, tmp_path, name):
    case, arg, overrides = CASES[name]
    whole = losses(root / case, tmp_path / "whole", arg, **{"mesh.replica": 8})
    np.testing.assert_allclose(losses(root / case, tmp_path / "many", arg, **overrides), whole, rtol=2e-5)
    assert whole[-1] < whole[0]
