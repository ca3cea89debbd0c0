"""Multimodal wrappers: the trained text part goes back among tensors and files that stay what they were."""

import json
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import peft
import pytest
import torch
import transformers
from etils import epath
from safetensors.numpy import load_file, save_file

from sft_jax.exports import proof
from sft_jax.exports.adapter import export_adapter
from sft_jax.exports.directory import ExportError
from sft_jax.exports.source import merged_weights, open_source
from sft_jax.models.storing import pending_tensors, put_back
from sft_jax.runs.base import open_base
from sft_jax.sharding import inference_mesh
from sft_jax.sources.safetensors_writer import write_safetensors
from sft_jax.training import run
from tests import tiny
from tests.exports.conftest import FAST, export, no_progress
from tests.exports.test_model import IDS, our_logits
from tests.models import families

# -> whether in the older layout, and tensors that are not the text part's
CASES = {
    "gemma3 wrapper": (True, 34),
    "gemma4 wrapper": (False, 16),
    "gemma4_unified wrapper": (False, 10),
    "mistral3 wrapper": (False, 15),
    "qwen3_5 wrapper": (False, 21),
}
TOWERS = {families.hf_config(case)["model_type"]: count for case, (_, count) in CASES.items()}
PROCESSOR = {"image_processor_type": "Gemma3ImageProcessor", "processor_class": "Gemma3Processor"}
SHARD = 20_000


def make_root(case, root, **saved):
    """`model/` with what belongs to it, `train.jsonl` and `held_out.jsonl`."""
    families.torch_model(case).save_pretrained(root / "model", save_original_format=CASES[case][0], **saved)
    tiny.tokenizer().save_pretrained(root / "model")
    (root / "model" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    tiny.write_rows(root / "train.jsonl", 24)
    tiny.write_rows(root / "held_out.jsonl", 8, seed=1)
    return root


@pytest.fixture(scope="module", params=CASES)
def root(request, tmp_path_factory):
    return make_root(request.param, tmp_path_factory.mktemp("wrapper"), max_shard_size="20KB")


def in_torch(directory):
    auto = transformers.AutoModelForImageTextToText
    return auto.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def stored(directory):
    """(Name -> array of all files, what the index maps)."""
    arrays = {}
    for path in sorted(directory.glob("*.safetensors")):
        arrays |= load_file(path)
    return arrays, json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]


def is_text(name):
    return "language_model." in name or "lm_head." in name


def assert_put_back(out, root, moved):
    """The index names what it named before; what is no text has its bits, in torch too.

    `moved`: ends of names, of tensors that are other ones now.
    """
    (before, names), (after, names_now) = stored(root / "model"), stored(out)
    assert names_now.keys() == names.keys() == after.keys()
    same = {name for name, array in before.items() if np.array_equal(array, after[name])}
    assert {name for name in names if not is_text(name)} <= same
    for end in moved:
        assert {name for name in names if is_text(name) and name.endswith(end)}.isdisjoint(same), end
    ours, theirs = in_torch(root / "model").state_dict(), in_torch(out).state_dict()
    towers = [name for name in ours if not is_text(name)]
    assert len(towers) == TOWERS[json.loads((root / "model" / "config.json").read_text())["model_type"]]
    for name in towers:
        assert torch.equal(theirs[name], ours[name]), name
    assert json.loads((out / "preprocessor_config.json").read_text()) == PROCESSOR


@pytest.mark.slow
def test_a_full_run(root, tmp_path):
    run(tiny.config(root, "full", **FAST), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", max_shard_bytes=SHARD)
    assert_put_back(tmp_path / "out", root, ["q_proj.weight", "down_proj.weight", "norm.weight", "embed_tokens.weight"])
    expected = our_logits(tmp_path / "run")
    np.testing.assert_allclose(families.torch_logits(in_torch(tmp_path / "out"), IDS), expected, atol=1e-4)
    assert np.abs(expected - our_logits(root / "model")).max() > 1e-2
    before, now = (json.loads((path / "config.json").read_text()) for path in (root / "model", tmp_path / "out"))
    assert now.keys() - before.keys() <= {"bos_token_id", "eos_token_id", "pad_token_id"}
    assert now["vision_config"] == before["vision_config"]
    assert now["text_config"].keys() == before["text_config"].keys()
    card = (tmp_path / "out" / "README.md").read_text()
    for text in (
        "AutoModelForImageTextToText.from_pr",
        "pipeline_tag: image-text-to-text",
        "bit for bit, in the dtype",
    ):
        assert text in card


@pytest.mark.slow
def test_adapters_merged_with_more_tokens_and_a_run_after_that(root, tmp_path):
    """The size of the vocabulary is that of the text config. The second run starts from the first."""
    tokens = tuple(f"<|{number}|>" for number in range(70))
    changes = {"model.new_tokens": tokens, "adapter.train_new_tokens": True}
    if json.loads((root / "model" / "config.json").read_text())["model_type"] == "gemma4":
        with pytest.raises(ValueError, match=r"model\.new_tokens: this model has a second embedding of each token"):
            run(tiny.config(root, "lora", **FAST, **changes), tmp_path / "run")
        return
    run(tiny.config(root, "lora", **FAST, **changes), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", max_shard_bytes=SHARD)
    assert_put_back(tmp_path / "out", root, ["q_proj.weight", "embed_tokens.weight"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "vocab_size" not in config
    assert (
        config["text_config"]["vocab_size"] == 384 == in_torch(tmp_path / "out").get_input_embeddings().num_embeddings
    )
    np.testing.assert_allclose(
        families.torch_logits(in_torch(tmp_path / "out"), IDS), our_logits(tmp_path / "run"), atol=1e-4
    )
    run(tiny.config(root, "lora", **FAST, **{"model.source": str(tmp_path / "run")}), tmp_path / "next")
    export(tmp_path / "next", tmp_path / "again", max_shard_bytes=SHARD)
    assert_put_back(tmp_path / "again", root, ["q_proj.weight"])


@pytest.mark.slow
def test_a_quantized_run_goes_on_and_its_adapter_is_loaded_by_peft(root, tmp_path):
    changes = {"precision.quantized": "nf4", "adapter.method": "lora"}
    config = tiny.config(root, "lora", **FAST, **changes)
    run(config, tmp_path / "run", stop_after=1)
    run(config, tmp_path / "run")
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        export_adapter(
            open_source(str(tmp_path / "run")), epath.Path(tmp_path / "out"), mesh, "float32", no_progress, max_drift=1
        )
    adapted = peft.PeftModel.from_pretrained(in_torch(root / "model"), tmp_path / "out").eval()
    assert not [name for name, _ in adapted.named_parameters() if "lora_" in name and "language_model" not in name]
    merged = our_logits(tmp_path / "out")  # the base in float32, as peft has it
    np.testing.assert_allclose(families.torch_logits(adapted, IDS), merged, atol=1e-4)
    assert np.abs(merged - our_logits(root / "model")).max() > 1e-2
    export(tmp_path / "out", tmp_path / "merged", max_shard_bytes=SHARD)
    assert_put_back(tmp_path / "merged", root, ["q_proj.weight"])


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A wrapper in one file, whose tower has other dtypes and a head that is stored though it is tied."""
    root = make_root("gemma3 wrapper", tmp_path_factory.mktemp("single"))
    path = root / "model" / "model.safetensors"
    arrays = load_file(path)
    arrays |= {n: a.astype(ml_dtypes.bfloat16)[..., :1].copy() for n, a in arrays.items() if n.endswith("fc1.bias")}
    arrays["vision_tower.embeddings.position_ids"] = np.arange(4)
    arrays["language_model.lm_head.weight"] = arrays["language_model.model.embed_tokens.weight"]
    save_file(arrays, path, {"format": "pt"})
    return root / "model"


def test_dtypes_and_names_are_those_of_the_source(single, tmp_path):
    """Another dtype is that of the text part; a tied head that was stored is stored again."""
    for dtype in ("source", "bfloat16"):
        export(single, tmp_path / dtype, dtype)
        before, after = load_file(single / "model.safetensors"), load_file(tmp_path / dtype / "model.safetensors")
        assert after.keys() == before.keys()
        for name, array in before.items():
            if not is_text(name) or dtype == "source":
                assert after[name].dtype == array.dtype
                np.testing.assert_array_equal(after[name], array, err_msg=name)
            else:
                assert after[name].dtype == ml_dtypes.bfloat16
        embedding, head = (after[f"language_model.{name}.weight"] for name in ("model.embed_tokens", "lm_head"))
        np.testing.assert_array_equal(embedding, head)
        header = (tmp_path / dtype / "model.safetensors").read_bytes()
        size = int.from_bytes(header[:8], "little")
        for name, entry in json.loads(header[8 : 8 + size]).items():  # torch reads no float32 at an odd place
            assert (
                name == "__metadata__" or entry["data_offsets"][0] % before[name].dtype.itemsize == 0 or is_text(name)
            )


def test_what_is_not_what_it_was_is_not_exported(single, tmp_path):
    wrapper = open_base(str(single)).wrapper
    name = "vision_tower.embeddings.position_ids"
    export(single, tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    arrays = load_file(path)
    proof.check_rest(epath.Path(path.parent), wrapper, lambda num_bytes: None)
    save_file(arrays | {name: arrays[name] + 1}, path, {"format": "pt"})
    with pytest.raises(ExportError, match=rf"{name} is not what it is in the source"):
        proof.check_rest(epath.Path(path.parent), wrapper, lambda num_bytes: None)
    save_file({n: array for n, array in arrays.items() if n != name}, path, {"format": "pt"})
    with pytest.raises(ExportError, match=rf"the tensors \['{name}'\] are in it or in its source alone"):
        proof.check_rest(epath.Path(path.parent), wrapper, lambda num_bytes: None)


def test_the_host_holds_one_tensor_at_a_time(single, tmp_path):
    """A tower of eight large tensors beside the text part."""
    (tmp_path / "large").mkdir()
    arrays = load_file(single / "model.safetensors")
    large = {f"vision_tower.large.{n}": np.full((1 << 18,), n, np.float32) for n in range(8)}
    save_file(arrays | large, tmp_path / "large" / "model.safetensors")
    (tmp_path / "large" / "config.json").write_text((single / "config.json").read_text())
    base = open_base(str(tmp_path / "large"))
    weights = merged_weights({"params": base.params("unrolled", "float32", inference_mesh(jax.devices()))}, None)
    made = pending_tensors(weights, base.hf_config, base.decoder, "float32")
    tensors = put_back(made, base.wrapper, base.hf_config, base.decoder)
    tracemalloc.start()
    write_safetensors(epath.Path(tmp_path / "written.safetensors"), tensors)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * large["vision_tower.large.0"].nbytes  # one, and as the file gives it
    assert load_file(tmp_path / "written.safetensors")["vision_tower.large.7"][0] == 7
