"""A tiny model to ask, on one device."""

import jax
import pytest

from sft_jax.runs.restore import load_for_inference
from sft_jax.sharding import inference_mesh
from tests import tiny


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Where the tiny checkpoint lies."""
    return tiny.write_checkpoint(tmp_path_factory.mktemp("asked") / "model", num_hidden_layers=2)


@pytest.fixture(scope="session")
def loaded(tiny_model):
    mesh = inference_mesh(jax.devices()[:1])
    with jax.set_mesh(mesh):
        return load_for_inference(str(tiny_model), mesh, "float32")


@pytest.fixture
def on_mesh():
    with jax.set_mesh(inference_mesh(jax.devices()[:1])):
        yield
