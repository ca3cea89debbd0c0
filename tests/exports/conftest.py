"""Finished runs of the tiny model, and their exports."""

import jax
import pytest
import torch
import transformers
from etils import epath

from sft_jax.exports.model import export_model
from sft_jax.exports.source import open_source
from sft_jax.sharding import inference_mesh
from sft_jax.training import run
from tests import tiny

FAST = {"duration": "3 steps", "evaluation.every": "3 steps", "checkpoint.every": "3 steps", "mesh.fsdp": 8}


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="session")
def full(root):
    """A run that trained all weights, and kept their average."""
    run(tiny.config(root, "full", **FAST, **{"ema.decay": 0.5}), root / "full")
    return root / "full"


@pytest.fixture(scope="session")
def lora(root):
    """A run that trained adapters, the embedding's too."""
    targets = ("attention/(query|value)", "ffn/down", "embedding")
    run(tiny.config(root, "lora", **FAST, **{"adapter.targets": targets}), root / "lora")
    return root / "lora"


def no_progress(title, total):
    return lambda done, total: None


def export(source, out, dtype="float32", weights="trained", **options):
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        return export_model(open_source(str(source), weights), epath.Path(out), mesh, dtype, no_progress, **options)


def in_torch(directory):
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def torch_logits(directory, ids):
    with torch.no_grad():
        return in_torch(directory)(input_ids=torch.from_numpy(ids).long()).logits.numpy()
