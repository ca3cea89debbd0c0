"""Whole models: what torch loads predicts what ours did, and what is not proven is not there."""

import json
import re
import tracemalloc

import jax
import numpy as np
import pytest
import torch
import transformers
from etils import epath
from flax.traverse_util import flatten_dict

from sft_jax.exports import model as exports
from sft_jax.exports import proof
from sft_jax.exports.directory import ExportError
from sft_jax.exports.source import check_format, merged_weights, open_source
from sft_jax.models.storing import pending_tensors
from sft_jax.runs.base import open_base
from sft_jax.runs.restore import load_for_inference
from sft_jax.runs.workdir import WorkdirError
from sft_jax.sharding import inference_mesh
from sft_jax.sources.safetensors_writer import PendingTensor, write_safetensors
from sft_jax.training import run
from tests import buckets, tiny
from tests.command_line import flags_in
from tests.exports.conftest import FAST, export, in_torch, torch_logits
from tests.models import reference
from tests.runs.test_restore import TEMPLATE

IDS = np.random.default_rng(5).integers(0, 300, (2, 24)).astype(np.int32)


def our_logits(source, weights="trained"):
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        loaded = load_for_inference(str(source), mesh, "float32", weights)
        return np.asarray(jax.jit(loaded.model.apply)(loaded.variables, IDS))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "lora"])
def test_torch_loads_it_and_predicts_the_same(name, request, tmp_path):
    source = request.getfixturevalue(name)
    exported = export(source, tmp_path / "out")
    found, expected = torch_logits(tmp_path / "out", IDS), our_logits(source)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(expected - our_logits(source.parent / "model")).max() > 1e-2  # not the base model's
    assert exported.drift.relative < 1e-4
    assert exported.drift.same_choice == 1


def test_the_golden_conversation_is_what_torch_has_too(full, tmp_path):
    export(full, tmp_path / "out")
    golden = json.loads((tmp_path / "out" / "golden.json").read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer.apply_chat_template(golden["messages"])["input_ids"]
    assert ids == golden["ids"]
    logits = torch_logits(tmp_path / "out", np.asarray([ids]))[0, -1]
    likely = torch.log_softmax(torch.from_numpy(logits), -1)
    for token in golden["next_tokens"]:
        assert float(likely[token["id"]]) == pytest.approx(token["log_probability"], abs=1e-4)
    assert golden["next_tokens"][0]["id"] == int(likely.argmax())


def test_what_was_exported_is_loaded_back_bit_for_bit(full, tmp_path):
    """load(export(x)) == x, and exporting that gives the same files again."""
    export(full, tmp_path / "one")
    export(tmp_path / "one", tmp_path / "two")
    mesh = inference_mesh(jax.devices())
    trained = open_source(str(full)).variables(mesh)["params"]
    read = flatten_dict(open_base(str(tmp_path / "two")).params("unrolled", "float32", mesh), sep="/")
    for path, leaf in flatten_dict(trained, sep="/").items():
        np.testing.assert_array_equal(read[path], leaf, err_msg=path)
    for name in ("model.safetensors", "tokenizer.json", "config.json", "generation_config.json", "golden.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_answers_end_in_torch_with_the_templates_end_of_turn(full, tmp_path):
    """The base names another id; a template's end of turn that is no eos token is kept beside it."""
    (tmp_path / "base").mkdir()
    tiny.write_checkpoint(tmp_path / "base", eos_token_id=0, bos_token_id=0)
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "generation_config.json").write_text('{"eos_token_id": 0, "temperature": 0.6}')
    export(tmp_path / "base", tmp_path / "out")
    generation = in_torch(tmp_path / "out").generation_config
    assert generation.eos_token_id == [0, 2]
    assert generation.temperature == 0.6
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == [0, 2]


def test_the_template_as_trained(root, tmp_path):
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    changes = FAST | {"duration": "1 steps", "model.chat_template": str(tmp_path / "template.jinja")}
    run(tiny.config(root, "full", **changes), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == TEMPLATE


def with_named_templates(directory, *, in_config):
    """The tiny checkpoint with two chat templates, in tokenizer_config.json or as files."""
    tiny.write_checkpoint(directory)
    named = {"default": tiny.CHATML, "tool_use": TEMPLATE}
    if in_config:
        (directory / "chat_template.jinja").unlink()
        config = json.loads((directory / "tokenizer_config.json").read_text())
        config["chat_template"] = [{"name": name, "template": text} for name, text in named.items()]
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    else:
        (directory / "additional_chat_templates").mkdir()
        (directory / "additional_chat_templates" / "tool_use.jinja").write_text(TEMPLATE)
    return named


@pytest.mark.parametrize("in_config", [True, False])
def test_named_templates_as_they_came(tmp_path, in_config):
    named = with_named_templates(tmp_path / "base", in_config=in_config)
    exported = export(tmp_path / "base", tmp_path / "out")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == named
    file = "additional_chat_templates/tool_use.jinja"
    assert (file in exported.files) == (not in_config)
    if in_config:
        fields = [json.loads((tmp_path / name / "tokenizer_config.json").read_text()) for name in ("base", "out")]
        assert fields[0]["chat_template"] == fields[1]["chat_template"]
    else:
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "base" / file).read_bytes()
        bucket = buckets.empty(tmp_path.name) / "out"
        export(tmp_path / "base", bucket)
        assert (bucket / file).read_text() == TEMPLATE


def test_a_named_template_that_reads_back_otherwise(tmp_path, monkeypatch):
    with_named_templates(tmp_path / "base", in_config=False)

    def damaged(directory, *arguments):
        (directory / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
        return proof.check_files(directory, *arguments)

    monkeypatch.setattr(exports, "check_files", damaged)
    with pytest.raises(ExportError, match="reads other chat templates than the model was trained with"):
        export(tmp_path / "base", tmp_path / "out")


def test_a_single_template_with_carriage_returns(tmp_path):
    """Which are lost where a file of text is read."""
    tiny.write_checkpoint(tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    config = json.loads((tmp_path / "base" / "tokenizer_config.json").read_text())
    template = tiny.CHATML + "{# \r\n #}"
    (tmp_path / "base" / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    export(tmp_path / "base", tmp_path / "out")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == template


def test_the_average_of_a_run(full, tmp_path):
    export(full, tmp_path / "out", weights="ema")
    found = torch_logits(tmp_path / "out", IDS)
    np.testing.assert_allclose(found, our_logits(full, "ema"), atol=1e-4)
    assert np.abs(found - our_logits(full)).max() > 1e-3


def test_shards_with_an_index(full, tmp_path):
    export(full, tmp_path / "out", max_shard_bytes=40_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert sorted(set(index["weight_map"].values())) == files
    state = in_torch(tmp_path / "out").state_dict()
    assert index["metadata"]["total_size"] == sum(state[name].nbytes for name in index["weight_map"])
    assert state.keys() - index["weight_map"].keys() == {"lm_head.weight"}  # tied
    np.testing.assert_allclose(torch_logits(tmp_path / "out", IDS), our_logits(full), atol=1e-4)


def test_fewer_bits_are_said_and_limited(lora, tmp_path):
    exported = export(lora, tmp_path / "out", "bfloat16")
    assert 1e-5 < exported.drift.relative < 0.1
    assert in_torch(tmp_path / "out").config.dtype in (torch.float32, "float32")  # as asked for above
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    with pytest.raises(
        ExportError,
        match=r"merging what was trained beside the weights and storing the weights in bfloat16 moves the logits",
    ):
        export(lora, tmp_path / "strict", "bfloat16", max_drift=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_drift_beyond_the_tolerance_is_met_as_advised(lora, tmp_path):
    """In float32, where that was not the dtype, or by as much as is said to be the drift."""
    with pytest.raises(
        ExportError, match=r"Nothing was written\. To go on export in --dtype=float32, or accept"
    ) as error:
        export(lora, tmp_path / "out", "bfloat16", max_drift=1e-6)
    (flag,) = flags_in(str(error.value))
    export(lora, tmp_path / "float32", flag.removeprefix("--dtype="))
    measured = float(re.search(r"which is (\S+) of their standard deviation", str(error.value))[1])
    export(lora, tmp_path / "accepted", "bfloat16", max_drift=1.01 * measured)
    with pytest.raises(ExportError, match=r"Nothing was written\. To go on accept more with --max_drift\."):
        export(lora, tmp_path / "out", "float32", max_drift=0.0)


def test_a_dtype_that_weights_are_not_exported_in(tmp_path):
    tiny.write_checkpoint(tmp_path / "model", num_hidden_layers=1, dtype="float64")
    with pytest.raises(ExportError, match=r"config\.json has dtype 'float64'; give --dtype=") as error:
        export(tmp_path / "model", tmp_path / "out", "source")
    (flag,) = flags_in(str(error.value))
    for dtype in flag.removeprefix("--dtype=").split("|"):
        assert export(tmp_path / "model", tmp_path / dtype, dtype).dtype == dtype


@pytest.mark.slow
def test_a_quantized_base_is_merged_as_it_was_trained_with(root, tmp_path):
    changes = FAST | {"precision.quantized": "nf4", "adapter.method": "pissa"}
    run(tiny.config(root, "lora", **changes), tmp_path / "run")
    assert export(tmp_path / "run", tmp_path / "out").drift.relative < 1e-4


def test_a_bucket(full, tmp_path):
    out = buckets.empty(tmp_path.name) / "out"
    export(full, out)
    export(full, tmp_path / "here")
    assert {file.name: file.read_bytes() for file in out.iterdir()} == {
        file.name: file.read_bytes() for file in (tmp_path / "here").iterdir()
    }
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_the_host_holds_one_tensor_at_a_time(tmp_path):
    """Traced are NumPy's arrays; the parameters are JAX's."""
    hf_config = tiny.HF_CONFIG | {"hidden_size": 128, "intermediate_size": 1200, "vocab_size": 1200}
    config, params = reference.random_params(hf_config)
    tensors = pending_tensors(merged_weights({"params": params}, None), hf_config, config, "float32")
    largest = max(tensor.num_bytes for tensor in tensors.values())
    tracemalloc.start()
    write_safetensors(epath.Path(tmp_path / "model.safetensors"), tensors)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(tensor.num_bytes for tensor in tensors.values()) > 8 * largest
    assert peak < 2.5 * largest  # one as the device gives it and one as it is stored; names and header


def test_what_is_written_is_what_was_announced(tmp_path):
    wrong = PendingTensor((2, 2), np.dtype(np.float32), lambda: np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"x became float32\[2, 3\]; announced was float32\[2, 2\]"):
        write_safetensors(epath.Path(tmp_path / "file"), {"x": wrong})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("weights", r"model\.norm\.weight reads back as other numbers"),
        ("ids", "AutoTokenizer makes another text or other ids"),
        ("stops", r"generation_config\.json: eos_token_id=null lacks ids"),
    ],
)
def test_what_is_damaged_is_not_exported(damage, message, full, tmp_path, monkeypatch):
    def damaged(check):
        def first_damage(directory, *arguments):
            if damage == "weights":
                content = bytearray((directory / "model.safetensors").read_bytes())
                offset = int.from_bytes(content[:8], "little")
                begin = json.loads(content[8 : 8 + offset])["model.norm.weight"]["data_offsets"][0]
                content[8 + offset + begin] ^= 1
                (directory / "model.safetensors").write_bytes(bytes(content))
            if damage == "ids":
                template = directory / "chat_template.jinja"
                template.write_text(template.read_text().replace("\n", " "))
            if damage == "stops":
                (directory / "generation_config.json").write_text("{}")
            return check(directory, *arguments)

        return first_damage

    name = "check_weights" if damage == "weights" else "check_files"
    monkeypatch.setattr(exports, name, damaged(getattr(proof, name)))
    with pytest.raises(ExportError, match=message):
        export(full, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_numbers_that_a_dtype_does_not_hold(full, tmp_path):
    source, checkpoint = open_source(str(full)), tmp_path / "model"
    weights = merged_weights(source.variables(inference_mesh(jax.devices())), None)
    weights["final_norm/scale"] = lambda place: jax.numpy.full(32, 1e6)
    hf_config = source.base.hf_config
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(json.dumps(hf_config))

    def check(dtype):
        tensors = pending_tensors(weights, hf_config, source.decoder, dtype)
        write_safetensors(epath.Path(checkpoint / "model.safetensors"), tensors)
        proof.check_weights(epath.Path(checkpoint), weights, hf_config, source.decoder, lambda num_bytes: None)

    with pytest.raises(ExportError, match=r"model\.norm\.weight has numbers that are not finite as float16") as error:
        check("float16")
    (flag,) = flags_in(str(error.value))
    check(flag.removeprefix("--dtype="))
    weights["final_norm/scale"] = lambda place: jax.numpy.full(32, jax.numpy.inf)
    with pytest.raises(ExportError, match=r"not finite as float32; export another checkpoint of the run$"):
        check("float32")


FORMATS = [  # (name of the run, format that does not fit it, formats that are advised)
    ("lora", "hf", ["peft", "merged"]),
    ("full", "peft", ["hf"]),
    ("full", "merged", ["hf"]),
]


def formats_in(message):
    return [flag.removeprefix("--format=") for flag in flags_in(message.partition("give ")[2])]


@pytest.mark.parametrize(("name", "kind", "advised"), FORMATS)
def test_a_format_that_does_not_fit_is_refused_by_one_that_does(name, kind, advised, request):
    source = open_source(str(request.getfixturevalue(name)))
    with pytest.raises(
        ExportError, match=r"; give --format=hf$|: give --format=peft for the adapter alone, or"
    ) as error:
        check_format(source, kind)
    assert formats_in(str(error.value)) == advised
    for format_there in advised:
        check_format(source, format_there)


def test_new_tokens_are_merged(root, tmp_path):
    """A PEFT directory does not hold them: it is advised neither at the export nor where the run is continued."""
    config = tiny.config(root, "lora", **FAST, **{"model.new_tokens": ("<|a|>",), "adapter.train_new_tokens": True})
    run(config, tmp_path / "run")
    for kind in ("peft", "hf"):
        with pytest.raises(ExportError) as error:
            check_format(open_source(str(tmp_path / "run")), kind)
        assert formats_in(str(error.value)) == ["merged"]
    export(tmp_path / "run", tmp_path / "out")
    assert "<|a|>" in transformers.AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()
    with pytest.raises(WorkdirError, match=r"merges its adapter into the weights and begins a new one$"):
        run(tiny.config(root, "lora", **FAST), tmp_path / "run")


def test_an_average_is_of_a_run(full):
    with pytest.raises(ValueError, match="--weights=ema is for runs"):
        open_source(str(full.parent / "model"), "ema")


def test_the_card(lora, tmp_path):
    export(lora, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert str(lora.parent) not in card
    for text in (
        "- Base model: `model`",
        "train.jsonl",
        "held_out/nll",
        '"rank": 4',
        "Merged in float32: lora adapter",
        "ids 2",
    ):
        assert text in card, text
