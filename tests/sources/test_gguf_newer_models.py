"""The families of 2025 and 2026: a torch model, written as llama.cpp's conversion writes it, gives torch's logits here.

transformers' own reading of Qwen 3.5 is a second reference for the files that are written here.
"""

import itertools

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from sft_jax.sources import open_checkpoint
from tests.models import families, reference
from tests.sources import gguf_models, gguf_newer_models
from tests.sources.gguf_newer_models import torch_model, write

# 1 + w and -exp(A_log) are rounded when they are written.
ROUNDED = {"qwen35", "qwen35moe", "qwen3next"}


@pytest.fixture(scope="module", params=gguf_newer_models.CASES)
def case(request, tmp_path_factory):
    """(name, torch model, path of its GGUF file)."""
    model = torch_model(request.param)
    return request.param, model, write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", model)


def test_logits_tensors_and_config_equal_those_of_the_torch_model(case):
    name, model, path = case
    gguf_models.check_read(model, path, rounded=1e-6 if name in ROUNDED else 0.0)


def test_parts_of_tensors_are_read_as_the_whole(case):
    for label, entry in open_checkpoint(case[2]).tensors.items():
        whole = entry.load()
        assert whole.shape == entry.shape
        cuts = [0, entry.rows // 3, entry.rows // 2 + 1, entry.rows]
        for start, stop in itertools.pairwise(cuts):
            if start < stop:
                np.testing.assert_array_equal(entry.read(start, stop), whole[start:stop], err_msg=label)


@pytest.mark.parametrize("name", ["qwen35", "qwen35moe"])
def test_transformers_reads_the_files_of_qwen35(name, tmp_path):
    model = torch_model(name)
    write(tmp_path / "tiny.gguf", model)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="tiny.gguf", dtype="float32", attn_implementation="eager"
    )
    ids = reference.tokens(2, 24)
    np.testing.assert_allclose(
        families.torch_logits(theirs, ids), families.torch_logits(model, ids), atol=gguf_models.TOLERANCE
    )
