"""A run goes on from a PEFT adapter: where it begins, what contradicts it, and what a resumed run insists on."""

import ast
import json
import re

import jax
import numpy as np
import peft
import pytest
import torch
import transformers

from sft_jax.options import options_of
from sft_jax.runs.base import open_base
from sft_jax.runs.metric_log import read_metrics
from sft_jax.runs.restore import load_for_inference
from sft_jax.sharding import inference_mesh
from sft_jax.training import run
from sft_jax.training.initial_adapter import open_initial_adapter
from tests import tiny
from tests.command_line import SFT, config_of
from tests.models import reference

UNASKED = {"adapter.rank": 16, "adapter.alpha": 32.0}


def made_by_peft(tmp_path, **fields):
    """An adapter directory whose weights are far from their beginning."""
    tiny.config(tmp_path, "lora")
    settings = {"r": 3, "lora_alpha": 5.0, "target_modules": ["q_proj", "up_proj"], "rank_pattern": {"up_proj": 2}}
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **(settings | fields)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    wrapped.eval().save_pretrained(tmp_path / "adapter")
    return wrapped


def first_held_out(directory):
    return next(line["held_out/nll"] for line in read_metrics(directory / "metrics.jsonl") if "held_out/nll" in line)


def config(tmp_path, **settings):
    asked = UNASKED | {"adapter.initial": str(tmp_path / "adapter")} | settings
    return tiny.config(tmp_path, "lora", duration="2 steps", **asked)


@pytest.mark.slow
def test_a_run_begins_where_the_adapter_is(tmp_path):
    wrapped = made_by_peft(tmp_path)
    run(config(tmp_path), tmp_path / "run")
    said = json.loads((tmp_path / "run" / "config.json").read_text())["adapter"]
    assert said["method"] == "lora"
    assert dict.fromkeys(said["targets"], said["rank"]) | {
        entry.split("=")[0]: int(entry.split("=")[1]) for entry in said["ranks"]
    } == {"attention/query": 3, "ffn/up": 2}
    merged = tiny.config(tmp_path, "lora", duration="1 steps", **{"model.source": str(tmp_path / "adapter")})
    run(merged, tmp_path / "merged")
    assert abs(first_held_out(tmp_path / "run") - first_held_out(tmp_path / "merged")) < 1e-5
    run(tiny.config(tmp_path, "lora", duration="1 steps"), tmp_path / "plain")
    assert abs(first_held_out(tmp_path / "run") - first_held_out(tmp_path / "plain")) > 1e-3
    mesh, ids = inference_mesh(jax.devices()), reference.tokens(1, 9)
    with jax.set_mesh(mesh):
        loaded = load_for_inference(str(tmp_path / "adapter"), mesh, "float32")
        ours = np.asarray(reference.apply(loaded.model, loaded.variables, ids))
    with torch.no_grad():
        theirs = wrapped(input_ids=torch.from_numpy(ids).long()).logits.numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    # Another adapter in the same place is refused when the run is continued.
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + np.float32(7).tobytes())
    with pytest.raises(ValueError, match="adapter changed since it started"):
        run(config(tmp_path), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter.rank": 8}, r"--config.adapter.rank=8: the adapter in .* has 3; leave it at 16, or give that"),
        ({"adapter.alpha": 1.0}, r"--config.adapter.alpha=1.0: .* has 5.0"),
        ({"adapter.method": "pissa"}, r"--config.adapter.method='pissa': .* has 'lora'"),
        ({"adapter.method": "none"}, r"give --config=configs/sft.py:lora"),
        (
            {"adapter.targets": ("head",)},
            r"--config.adapter.targets=\('head',\): .* has \('attention/query', 'ffn/up'\)",
        ),
        ({"adapter.initial": "/nowhere"}, r"/nowhere has no adapter_config.json"),
    ],
)
def test_flags_that_contradict_the_adapter(changes, message, tmp_path):
    made_by_peft(tmp_path, rank_pattern={})
    with pytest.raises(ValueError, match=message) as error:
        run(config(tmp_path, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    base, said = open_base(str(tmp_path / "model")), str(error.value)
    taken = lambda given: open_initial_adapter(options_of(given).adapter, base).in_config(given).adapter
    values = re.search(r"adapter\.(\w+)=.*: the adapter in .* has (.*); leave it at (.*), or give that$", said)
    flags = re.findall(r"--config=(\S+:lora)$", said)
    assert bool(values) + bool(flags) == ("/nowhere" not in said)
    if values:
        for value in map(ast.literal_eval, values.groups()[1:]):
            asked = config(tmp_path, **{f"adapter.{values[1]}": value})
            assert (taken(asked).rank, taken(asked).alpha, taken(asked).method) == (3, 5.0, "lora")
    if flags:
        assert config_of(f"--config={SFT.parents[1] / flags[0]}").adapter.method == "lora"
        assert taken(config(tmp_path)).method == "lora"


def test_dropout_that_the_adapter_does_not_draw(tmp_path):
    """Its targets are known only when it is read; dropout of the config is for those."""
    tiny.config(tmp_path)
    tiny.write_checkpoint(tmp_path / "model", tie_word_embeddings=False, num_hidden_layers=2)
    made_by_peft(tmp_path, target_modules=["embed_tokens"], rank_pattern={})
    with pytest.raises(ValueError, match=r"--config\.adapter\.dropout=0\.1: .*initial=.*/adapter has \('embedding',\)"):
        run(config(tmp_path, **{"adapter.dropout": 0.1}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert run(config(tmp_path, **{"adapter.dropout": 0.0}), tmp_path / "run").step == 2
