"""Adapters go to `peft` and come from it: the same logits in torch and here, and the same numbers after a round trip."""

import copy
import dataclasses
import json
import warnings
from pathlib import Path

import jax.numpy as jnp
import ml_collections
import numpy as np
import peft
import pytest
import torch
from etils import epath

from sft_jax.models import AdapterSpec, Decoder, Execution, load_pretrained
from sft_jax.models.layouts import to_layout
from sft_jax.models.peft_adapters import AdapterSettings, peft_adapter, settings_of
from sft_jax.models.peft_loading import LoadedAdapter, load_peft_adapter
from sft_jax.sources.peft import CONFIG, WEIGHTS, open_peft_adapter
from sft_jax.sources.safetensors_writer import write_safetensors
from sft_jax.training.adapting import init_adapters
from sft_jax.training.state import variables
from tests.models import families, reference

LAYERS = ("(attention|ffn)/.*",)
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Base:
    """A tiny model of a family, in torch and here."""

    torch_model: torch.nn.Module
    directory: Path
    hf_config: dict
    model: Decoder
    params: dict

    def plain(self) -> np.ndarray:
        return reference.logits_of(self.model, self.params, IDS)


IDS = reference.tokens(2, 9)
_MADE: dict[str, Base] = {}


@pytest.fixture
def base_of(tmp_path_factory):
    def make(case: str, **changes: object) -> Base:
        key = json.dumps([case, changes])
        if key not in _MADE:
            import transformers

            fields = families.hf_config(case) | changes
            config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
            torch_model = families.random_model(config)
            directory = families.save(torch_model, tmp_path_factory.mktemp("base"))
            model, params = load_pretrained(directory, execution=Execution(layer_layout="unrolled"))
            hf_config = json.loads((directory / "config.json").read_text())
            _MADE[key] = Base(torch_model, directory, hf_config, model, params)
        return _MADE[key]

    return make


def settings(**changes: object) -> ml_collections.ConfigDict:
    fields = {"method": "lora", "rank": 3, "ranks": (), "alpha": 6.0, "scaling": "rank", "targets": LAYERS}
    return ml_collections.ConfigDict(fields | {"dropout": 0.0} | changes)


def hyper(config: AdapterSettings) -> dict:
    values = {"adapter_alpha": config.alpha, "adapter_rank_power": config.power, "adapter_dropout": 0.0}
    return {name: jnp.float32(value) for name, value in values.items()}


def trained(base: Base, config: ml_collections.ConfigDict, layout: str = "unrolled") -> dict:
    """Adapters as after training: nothing is zero any more."""
    made = init_adapters(to_layout(base.params, "scan"), config, hyper(settings_of(config)), 0, layout)
    rng = np.random.default_rng(1)
    flat = reference.flat(made)
    push = lambda x: jnp.asarray(np.asarray(x) + 0.2 * rng.standard_normal(x.shape), jnp.float32)
    return reference.unflatten({path: leaf if "constant_" in path else push(leaf) for path, leaf in flat.items()})


def logits(base: Base, adapters: dict, config: AdapterSettings) -> np.ndarray:
    tree = variables({"adapters": to_layout(adapters, "unrolled")}, {"params": base.params}, hyper(config))
    model = Decoder(base.model.config, Execution(layer_layout="unrolled"), AdapterSpec(config.method))
    return np.asarray(reference.jit(model.apply)(tree, IDS))


def write(base: Base, adapters: dict, config: AdapterSettings, directory: Path) -> Path:
    fields, tensors = peft_adapter(adapters, config, base.hf_config, base.model.config, str(base.directory))
    directory.mkdir()
    (directory / CONFIG).write_text(json.dumps(fields))
    write_safetensors(epath.Path(directory / WEIGHTS), tensors)
    return directory


def in_torch(base: Base, directory: Path) -> np.ndarray:
    """Logits of what peft loads; every tensor of the directory is used, and none is missing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected|not initialized).*")
        wrapped = peft.PeftModel.from_pretrained(copy.deepcopy(base.torch_model), directory).eval()
    saved = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    with epath.Path(directory / WEIGHTS).open("rb"):
        assert set(open_peft_adapter(directory).tensors) == {n.removeprefix("base_model.model.") for n in saved}
    return families.torch_logits(wrapped, IDS)


def read(base: Base, directory: Path) -> LoadedAdapter:
    return load_peft_adapter(open_peft_adapter(directory), base.hf_config, base.model.config)


# What goes out: (family, changes of its config, settings here).
OUT = {
    "llama": ("llama", {}, {}),
    "llama, rslora": ("llama", {}, {"scaling": "sqrt_rank"}),
    "llama, dora": ("llama", {}, {"method": "dora"}),
    "llama, pissa": ("llama", {}, {"method": "pissa"}),
    "llama, pissa with sqrt": ("llama", {}, {"method": "pissa", "scaling": "sqrt_rank"}),
    "llama, ranks": ("llama", {}, {"ranks": ("attention/(query|key)=2", "ffn/.*=5")}),
    "llama, all": ("llama", {}, {"targets": (*LAYERS, "embedding", "head")}),
    "llama, all with dora": ("llama", {}, {"targets": (*LAYERS, "embedding", "head"), "method": "dora"}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}, {"targets": (*LAYERS, "embedding")}),
    "llama, tied pissa": (
        "llama",
        {"tie_word_embeddings": True},
        {"targets": (*LAYERS, "embedding"), "method": "pissa", "ranks": ("embedding=2",)},
    ),
    "qwen2": ("qwen2", {}, {}),
    "gemma2": ("gemma2", {}, {"targets": (*LAYERS, "embedding")}),
    "phi3": ("phi3", {}, {}),
    "phi3, ranks": ("phi3", {}, {"ranks": ("attention/key=2", "ffn/up=5"), "scaling": "sqrt_rank"}),
    "phi3, some": ("phi3", {}, {"targets": ("attention/(query|value)", "ffn/up")}),
    "phi3, dora": ("phi3", {}, {"method": "dora"}),
    "phi3, pissa": ("phi3", {}, {"method": "pissa"}),
    "gpt2": ("gpt2", {}, {"targets": (*LAYERS, "embedding")}),
    "gpt2, dora": ("gpt2", {}, {"method": "dora"}),
    "gpt_neox": ("gpt_neox", {}, {"targets": (*LAYERS, "embedding", "head")}),
    "gpt_neox, dora": ("gpt_neox", {}, {"method": "dora"}),
    "mixtral": ("mixtral", {}, {"targets": ("attention/.*", "experts/.*")}),
    "mixtral, some": ("mixtral", {}, {"targets": ("experts/(up|down)",), "scaling": "sqrt_rank"}),
    "qwen3_moe": (
        "qwen3_moe",
        {},
        {"targets": ("experts/(gate|up|down)",), "ranks": ("experts/up=2",), "method": "pissa"},
    ),
}


@pytest.mark.parametrize("name", OUT)
def test_ours_in_peft_and_back(name, base_of, tmp_path):
    case, changes, fields = OUT[name]
    base, config = base_of(case, **changes), settings(**fields)
    ours, said = trained(base, config), settings_of(config)
    expected = logits(base, ours, said)
    assert np.abs(expected - base.plain()).max() > 100 * TOLERANCE  # the adapter is seen
    directory = write(base, ours, said, tmp_path / "adapter")
    np.testing.assert_allclose(in_torch(base, directory), expected, atol=TOLERANCE)
    back = read(base, directory)
    np.testing.assert_allclose(logits(base, back.arrays, back.settings), expected, atol=TOLERANCE)
