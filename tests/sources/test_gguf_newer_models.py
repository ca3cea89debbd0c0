"""The families of 2025 and 2026: a torch model, written as llama.cpp's conversion writes it, gives torch's logits here.

transformers' own reading of Qwen 3.5 is a second reference for the files that are written here.
"""

import functools
import itertools

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from sft_jax.sources import SourceError, open_checkpoint
from tests.models import families, reference
from tests.sources import gguf_models, gguf_newer_models
from tests.sources.gguf_newer_models import torch_model, write

# 1 + w and -exp(A_log) are rounded when they are written.
ROUNDED = {"qwen35", "qwen35moe", "qwen3next"}


@functools.cache
def model_of(name):
    return torch_model(name)


@pytest.fixture(scope="module", params=gguf_newer_models.CASES)
def case(request, tmp_path_factory):
    """(name, torch model, path of its GGUF file)."""
    model = model_of(request.param)
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
    model = model_of(name)
    write(tmp_path / "tiny.gguf", model)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="tiny.gguf", dtype="float32", attn_implementation="eager"
    )
    ids = reference.tokens(2, 24)
    np.testing.assert_allclose(
        families.torch_logits(theirs, ids), families.torch_logits(model, ids), atol=gguf_models.TOLERANCE
    )


def same_tensors(path, other):
    ours, theirs = (open_checkpoint(one).tensors for one in (path, other))
    assert ours.keys() == theirs.keys()
    for label, entry in ours.items():
        np.testing.assert_array_equal(entry.load(), theirs[label].load(), err_msg=label)


@pytest.mark.parametrize("name", ["qwen35moe", "glm4moe"])
def test_gate_and_up_of_experts_in_one_tensor(name, tmp_path):
    """As `--fuse-gate-up-exps` writes them."""
    model = model_of(name)
    fused = {}
    for label, tensor in model.state_dict().items():
        if label.endswith("mlp.experts.gate_up_proj"):
            stem = f"blk.{label.split('.')[2]}.ffn_"
            fused |= {f"{stem}gate_exps.weight": None, f"{stem}up_exps.weight": None}
            fused[f"{stem}gate_up_exps.weight"] = tensor.numpy()
    assert fused
    same_tensors(write(tmp_path / "fused.gguf", model, fused), write(tmp_path / "apart.gguf", model))


def test_gate_and_up_of_gemma4_apart(tmp_path):
    model = model_of("gemma4 with experts")
    apart = {}
    for layer in range(3):
        gate, up = np.split(model.state_dict()[f"model.layers.{layer}.experts.gate_up_proj"].numpy(), 2, axis=1)
        stem = f"blk.{layer}.ffn_"
        apart |= {f"{stem}gate_up_exps.weight": None, f"{stem}gate_exps.weight": gate, f"{stem}up_exps.weight": up}
    same_tensors(write(tmp_path / "apart.gguf", model, apart), write(tmp_path / "fused.gguf", model))


def test_old_files_of_qwen3_next(tmp_path):
    """They have `in_proj_qkvz` as it is, under the name ssm_in."""
    model = model_of("qwen3next")
    old = {"blk.0.attn_qkv.weight": None, "blk.0.attn_gate.weight": None}
    old["blk.0.ssm_in.weight"] = model.state_dict()["model.layers.0.linear_attn.in_proj_qkvz.weight"].numpy()
    same_tensors(write(tmp_path / "old.gguf", model, old), write(tmp_path / "new.gguf", model))


def test_gate_of_the_shared_expert_without_an_axis_of_one(tmp_path):
    model, name = model_of("qwen35moe"), "mlp.shared_expert_gate.weight"
    squeezed = {
        f"blk.{layer}.ffn_gate_inp_shexp.weight": model.state_dict()[f"model.layers.{layer}.{name}"].numpy()[0]
        for layer in range(2)
    }
    same_tensors(write(tmp_path / "a.gguf", model, squeezed), write(tmp_path / "b.gguf", model))


def test_decay_that_is_not_negative_is_refused(tmp_path):
    path = write(tmp_path / "tiny.gguf", model_of("qwen35"), {"blk.0.ssm_a": np.ones(6, np.float32)})
    entry = open_checkpoint(path).tensors["model.layers.0.linear_attn.A_log"]
    with pytest.raises(SourceError, match=r"tiny.gguf: blk.0.ssm_a holds 1; expected negative numbers"):
        entry.load()


ONES = np.ones((4, 8), np.float32)


@pytest.mark.parametrize(
    ("name", "metadata", "tensors", "message"),
    [
        (
            "qwen35",
            {"ssm.inner_size": 71},
            {},
            r"inner_size is 71; expected a multiple of qwen35.ssm.time_step_rank = 6",
        ),
        ("qwen35", {"ssm.group_count": None}, {}, r"has no metadata 'qwen35.ssm.group_count'"),
        ("qwen35", {"ssm.group_count": 4}, {}, r"is of 6 value heads; expected a multiple of the 4 key heads"),
        ("qwen35", {"ssm.state_size": 9}, {}, r"blk.0.* has 104 rows; .* has it that there are 108"),
        ("qwen35", {"nextn_predict_layers": 3}, {}, r"nextn_predict_layers is 3, but qwen35.block_count is 3"),
        ("qwen35", {"attention.recurrent_layers": [1, 0]}, {}, r"not supported: qwen35.attention.recurrent_layers"),
        ("qwen35", {}, {"blk.0.ssm_out.weight": ONES}, r"shape \(4, 8\); expected 6 value heads x 12 columns"),
        ("qwen35", {}, {"blk.0.ssm_conv1d.weight": np.ones(104, np.float32)}, r"expected \(channels, width"),
        ("qwen35", {}, {"blk.0.ffn_gate_inp.weight": ONES}, r"not part of a qwen3_5_text model: blk.0.ffn_gate_inp"),
        ("qwen35moe", {}, {"blk.1.ffn_up_exps.weight": ONES}, r"\(4, 8\); expected \(experts, outputs, inputs\)"),
        ("qwen3next", {}, {"blk.0.attn_gate.weight": None}, r"has no tensor blk.0.attn_gate.weight"),
        (
            "qwen3next",
            {},
            {"blk.0.attn_gate.weight": ONES},
            r"attn_gate.weight has 4 rows; .* has it that there are 72",
        ),
        ("gemma4", {"attention.sliding_window_pattern": 6}, {}, r"pattern is 6; expected true or false for each of 4"),
        (
            "gemma4",
            {"attention.head_count_kv": [2, 2, 1, 1]},
            {},
            r"expected one number in all layers of the type 'slid",
        ),
        ("gemma4", {"attention.head_count_kv": [2, 1]}, {}, r"expected a whole number .* for each of 4 layers"),
        (
            "gemma4",
            {"attention.value_length_swa": 9},
            {},
            r"is 9; expected the head dimension of layers with a window 8",
        ),
        ("gemma4", {"rope.dimension_count": 8}, {}, r"is 8; expected the head dimension of layers without a window 16"),
        ("gemma4", {}, {"rope_freqs.weight": None}, r"has no tensor rope_freqs.weight"),
        ("gemma4", {}, {"rope_freqs.weight": np.ones(4, np.float32)}, r"has other divisors than 1 for the first pairs"),
        ("gemma4", {}, {"blk.3.attn_v.weight": ONES}, r"has no tensor blk.1.attn_v.weight, but others"),
        ("gemma4 with shared keys", {"feed_forward_length": [48] * 4 + [96] * 5}, {}, r"twice as much from layer 5 on"),
        (
            "gemma4 with shared keys",
            {},
            {"per_layer_token_embd.weight": None},
            r"no tensor per_layer_token_embd.weight",
        ),
        ("gemma4 with experts", {}, {"blk.0.ffn_gate_exps.weight": ONES}, r"has no tensor blk.0.ffn_up_exps.weight"),
        ("deepseek2", {"expert_gating_func": 1}, {}, r"func is 1; expected 2, .* DeepSeek V2 is not supported"),
        ("deepseek2", {"expert_gating_func": None}, {}, r"expert_gating_func is None; expected 2"),
        ("deepseek2", {"expert_group_count": None}, {}, r"has no metadata 'deepseek2.expert_group_count'"),
        ("deepseek2", {"attention.key_length": 7}, {}, r"is 7; expected kv_lora_rank \+ rope.dimension_count = 24"),
        ("deepseek2", {"attention.key_length_mla": 8}, {}, r"is 8; expected more than .*dimension_count = 8"),
        ("deepseek2", {"leading_dense_block_count": 9}, {}, r"is 9; there are 3 layers"),
        (
            "deepseek2",
            {"rope.scaling.yarn_log_multiplier": None},
            {},
            r"no metadata 'deepseek2.rope.scaling.yarn_log_m",
        ),
        (
            "deepseek2",
            {"attention.temperature_scale": 0.1},
            {},
            r"not supported: deepseek2.attention.temperature_scale",
        ),
        ("deepseek2", {"expert_weights_norm": 1}, {}, r"expert_weights_norm is 1; expected true or false"),
        ("deepseek2", {}, {"blk.1.attn_k_b.weight": None}, r"has no tensor blk.1.attn_k_b.weight"),
        ("deepseek2", {}, {"blk.1.attn_v_b.weight": ONES}, r"attn_v_b.weight has shape \(4, 8\); .* \(4, 10, 16\)"),
        ("glm4moe", {"expert_gating_func": 1}, {}, r"glm4moe.expert_gating_func is 1; expected 2"),
        ("glm4moe", {"rope.dimension_sections": [1, 2]}, {}, r"not supported: glm4moe.rope.dimension_sections"),
    ],
)
def test_files_that_are_refused(tmp_path, name, metadata, tensors, message):
    path = write(tmp_path / "tiny.gguf", model_of(name), tensors, **metadata)
    with pytest.raises(SourceError, match=f"tiny.gguf: .*{message}"):
        open_checkpoint(path)
