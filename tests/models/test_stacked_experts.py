"""Files that hold all experts in one tensor, as Qwen 3.5 is published: read, and put back into a wrapper."""

import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file

from sft_jax.exports.source import merged_weights
from sft_jax.models import Execution, load_pretrained
from sft_jax.models.storing import pending_tensors, put_back
from sft_jax.sources import open_checkpoint
from sft_jax.sources.safetensors_writer import write_safetensors
from tests.models import families, reference

IDS = reference.tokens(2, 24)


@pytest.mark.parametrize("case", ["qwen3_5_moe_text", "qwen3_5_moe wrapper"])
def test_all_experts_in_one_tensor(case, tmp_path):
    torch_model = families.torch_model(case)
    torch_model.save_pretrained(tmp_path / "model", save_original_format=False)  # as its modules have them
    before = load_file(tmp_path / "model" / "model.safetensors")
    (name,) = [name for name in before if name.endswith("layers.0.mlp.experts.gate_up_proj")]
    assert before[name].shape == (8, 48, 32)
    model, params = load_pretrained(tmp_path / "model", execution=Execution(layer_layout="unrolled"))
    found = reference.logits_of(model, params, IDS)
    np.testing.assert_allclose(found, families.torch_logits(torch_model, IDS), atol=1e-4)
    checkpoint = open_checkpoint(tmp_path / "model")
    if checkpoint.wrapper is None:
        return
    tensors = pending_tensors(merged_weights({"params": params}, None), checkpoint.config, model.config, "float32")
    tensors = put_back(tensors, checkpoint.wrapper, checkpoint.config, model.config)
    write_safetensors(epath.Path(tmp_path / "again.safetensors"), tensors)
    after = load_file(tmp_path / "again.safetensors")
    assert after.keys() == before.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array, err_msg=name)
