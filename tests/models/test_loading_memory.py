"""What loading holds in memory: of a large tensor a block at a time, of a tensor of all experts one expert.

How much that is for large files is measured by `python -m benchmarks.load_memory`.
"""

import weakref

import jax
import numpy as np
import pytest
from safetensors import safe_open

from sft_jax.models import shares
from sft_jax.models.loading import decoder_config, load_params, on_one
from sft_jax.sharding import make_mesh, placement
from sft_jax.sources import open_checkpoint, tensors
from tests.models import families, reference
from tests.models.test_mxfp4 import write_mxfp4

BLOCK = 4096
# name -> bytes of the largest expert that is stored beside others in one tensor; none is there for those that are not.
CASES = {
    "gemma4_text with shared keys": 0,  # a second embedding of every layer
    "qwen3_5_moe_text": 4 * 48 * 32,  # gate and up
    "gemma4_text with experts": 4 * 48 * 32,
    "gpt_oss": 128 * 17,  # gate and up in MXFP4: a byte for two values, and one for 32
    "deepseek_v3": 0,
    "glm4_moe": 0,
}
FAST = ("gemma4_text with shared keys", "qwen3_5_moe_text")


def written(case, directory):
    """A checkpoint as published files are."""
    if case == "gpt_oss":
        return write_mxfp4(directory)
    one_tensor = {"save_original_format": False} if case.startswith("qwen3_5_moe") else {}
    families.torch_model(case).save_pretrained(directory, **one_tensor)
    return directory


def largest(directory):
    with safe_open(directory / "model.safetensors", "np") as file:
        return max(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118  it is no mapping


@pytest.fixture
def alive(monkeypatch):
    """The most bytes that were read from files and were in memory at the same time."""
    counts, read_span = {"now": 0, "most": 0}, tensors.read_span

    def freed(size):
        counts["now"] -= size

    def counted(path, offset, num_bytes):
        content = read_span(path, offset, num_bytes)
        counts["now"] += num_bytes
        counts["most"] = max(counts.values())
        weakref.finalize(content, freed, num_bytes)
        return content

    monkeypatch.setattr(tensors, "read_span", counted)
    return counts


@pytest.mark.parametrize(
    "case", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_loading_holds_less_than_the_largest_tensor(case, tmp_path, alive, monkeypatch):
    directory = written(case, tmp_path)
    checkpoint = open_checkpoint(directory)
    config = decoder_config(checkpoint)
    plain = reference.flat(load_params(checkpoint, config, "unrolled", "float32", on_one(jax.devices()[0])))
    alive.update(now=0, most=0)
    monkeypatch.setattr(shares, "BLOCK_BYTES", BLOCK)
    mesh = make_mesh({"fsdp": 2, "expert": 2, "tensor": 2}, jax.devices())
    split = reference.flat(load_params(checkpoint, config, "unrolled", "float32", placement(mesh)))
    for path, array in plain.items():
        np.testing.assert_array_equal(split[path], array, err_msg=path)
        assert split[path].sharding.is_equivalent_to(placement(mesh)(path, array.shape), array.ndim), path
    held = 2 * BLOCK + 3 * CASES[case]  # a block behind another one; experts of two tensors, and one that is read next
    assert largest(directory) > held
    assert 0 < alive["most"] <= held
