"""What docs/extending.md shows of models: the family is the one in the code, the adapter method trains and merges."""

import re
import types
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest

from sft_jax.models import adapters
from sft_jax.models.families import olmo2
from sft_jax.runs.base import open_base
from sft_jax.runs.restore import load_for_inference
from sft_jax.sharding import inference_mesh
from sft_jax.training import run
from tests import tiny
from tests.models import reference

DOCS = Path(__file__).parents[2] / "docs" / "extending.md"


def test_the_family_shown_is_the_family_there_is():
    assert Path(olmo2.__file__).read_text() in DOCS.read_text()


@pytest.fixture
def ia3():
    module = types.ModuleType("ia3")
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if "ON_EXPERTS" in c)
    exec(compile(code, str(DOCS), "exec"), module.__dict__)
    with mock.patch.dict(adapters.METHODS, ia3=module):
        yield


def test_the_adapter_method_shown_trains_and_merges(ia3, tmp_path):
    config = tiny.config(
        tmp_path, "lora", duration="2 steps", **{"adapter.method": "ia3", "optimizer.warmup": "0 steps"}
    )
    run(config, tmp_path / "run")
    mesh, ids = inference_mesh(jax.devices()), reference.tokens(1, 8)
    with jax.set_mesh(mesh):
        loaded = load_for_inference(str(tmp_path / "run"), mesh, "float32")
        adapted = np.asarray(reference.apply(loaded.model, loaded.variables, ids))
        merged = {"params": open_base(str(tmp_path / "run")).params("unrolled", "float32", mesh)}
        together = np.asarray(reference.apply(loaded.model.clone(adapter=None), merged, ids))
        plain = {"params": open_base(config.model.source).params("unrolled", "float32", mesh)}
        before = np.asarray(reference.apply(loaded.model.clone(adapter=None), plain, ids))
    np.testing.assert_allclose(together, adapted, atol=1e-4)
    assert np.abs(adapted - before).max() > 1e-3
