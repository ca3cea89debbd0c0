"""Adapters go to `peft` and come from it: the same logits here and there, the same numbers after a round trip."""

import copy
import dataclasses
import functools
import json
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from etils import epath
from safetensors.numpy import save_file

from sft_jax.models import AdapterSpec, Decoder, Execution, load_pretrained
from sft_jax.models.families import FAMILIES
from sft_jax.models.layouts import resolved, to_layout
from sft_jax.models.peft_adapters import AdapterSettings, peft_adapter, settings_of
from sft_jax.models.peft_loading import LoadedAdapter, load_peft_adapter
from sft_jax.models.variables import variables
from sft_jax.options import AdapterOptions
from sft_jax.runs.adapting import init_adapters
from sft_jax.sources import open_checkpoint
from sft_jax.sources.peft import CONFIG, WEIGHTS, open_peft_adapter
from sft_jax.sources.safetensors_writer import write_safetensors
from sft_jax.sources.wrappers import WRAPPERS, Wrapper
from tests import tiny
from tests.models import families, reference

LAYERS = ("(attention|ffn)/.*",)
DELTA = ("delta/(query|key|value|output_gate|decay|beta|out)",)
EVERYWHERE = (*LAYERS, "(experts|shared)/.*")
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Base:
    """A tiny model of a family, in torch and here."""

    torch_model: torch.nn.Module
    directory: Path
    hf_config: dict
    model: Decoder
    params: dict
    wrapper: Wrapper | None

    @functools.cached_property
    def plain(self) -> np.ndarray:
        """Logits without an adapter."""
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
            checkpoint = open_checkpoint(directory)
            _MADE[key] = Base(torch_model, directory, checkpoint.config, model, params, checkpoint.wrapper)
        return _MADE[key]

    return make


def settings(**changes: object) -> AdapterOptions:
    return tiny.adapter(**{"rank": 3, "alpha": 6.0, "targets": LAYERS} | changes)


def hyper(config: AdapterSettings) -> dict:
    values = {"adapter_alpha": config.alpha, "adapter_rank_power": config.power, "adapter_dropout": 0.0}
    return {name: jnp.float32(value) for name, value in values.items()}


def trained(base: Base, config: AdapterOptions, layout: str = "unrolled") -> dict:
    """Adapters as after training: nothing is zero any more."""
    made = init_adapters(
        to_layout(base.params, resolved("scan", base.model.config)), config, hyper(settings_of(config)), 0, layout
    )
    rng = np.random.default_rng(1)
    flat = reference.flat(made)
    push = lambda x: jnp.asarray(np.asarray(x) + 0.2 * rng.standard_normal(x.shape), jnp.float32)
    return reference.unflatten({path: leaf if "constant_" in path else push(leaf) for path, leaf in flat.items()})


def logits(base: Base, adapters: dict, config: AdapterSettings) -> np.ndarray:
    tree = variables({"adapters": to_layout(adapters, "unrolled")}, {"params": base.params}, hyper(config))
    model = Decoder(base.model.config, Execution(layer_layout="unrolled"), AdapterSpec(config.method))
    return np.asarray(reference.jit(model.apply)(tree, IDS))


def write(base: Base, adapters: dict, config: AdapterSettings, directory: Path) -> Path:
    fields, tensors = peft_adapter(
        adapters, config, base.hf_config, base.model.config, str(base.directory), wrapper=base.wrapper
    )
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
    return load_peft_adapter(open_peft_adapter(directory), base.hf_config, base.model.config, base.wrapper)


def assert_same(found: dict, expected: dict) -> None:
    found, expected = reference.flat(found), reference.flat(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)


# Families whose projections are stored one by one, with nothing that an adapter could notice.
PLAIN = ("gemma3_text", "granite", "ministral3", "mistral", "olmo2", "olmo3", "qwen3", "smollm3")
# What goes out: (family, changes of its config, settings here).
OUT = {
    "llama": ("llama", {}, {}),
    "llama, rslora": ("llama", {}, {"scaling": "sqrt_rank"}),
    "llama, dora": ("llama", {}, {"method": "dora"}),
    "llama, pissa": ("llama", {}, {"method": "pissa"}),
    "llama, pissa with sqrt": ("llama", {}, {"method": "pissa", "scaling": "sqrt_rank"}),
    "llama, ranks": ("llama", {}, {"ranks": ("attention/(query|key)=2", "ffn/.*=5")}),
    "llama, all with dora": ("llama", {}, {"targets": (*LAYERS, "embedding", "head"), "method": "dora"}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}, {"targets": (*LAYERS, "embedding")}),
    "llama, tied pissa": (
        "llama",
        {"tie_word_embeddings": True},
        {"targets": (*LAYERS, "embedding"), "method": "pissa", "ranks": ("embedding=2",)},
    ),
    "qwen2": ("qwen2", {}, {}),
    "gemma2": ("gemma2", {}, {"targets": (*LAYERS, "embedding")}),
    **{family: (family, {}, {}) for family in PLAIN},
    "granitemoehybrid": ("granitemoehybrid", {}, {}),
    "gemma3 wrapper": ("gemma3 wrapper", {}, {"targets": (*LAYERS, "embedding")}),
    "mistral3 wrapper": ("mistral3 wrapper", {}, {"targets": (*LAYERS, "head"), "method": "dora"}),
    "gemma4_text": ("gemma4_text", {}, {"targets": (*LAYERS, "embedding")}),
    "gemma4_text with experts": ("gemma4_text with experts", {}, {"targets": EVERYWHERE}),
    "gemma4_text with shared keys": ("gemma4_text with shared keys", {}, {"targets": (*LAYERS, "per_layer/.*")}),
    "gemma4_text, dora": (
        "gemma4_text with shared keys",
        {},
        {"targets": ("attention/(query|key)", "per_layer/(gate|projection)"), "method": "dora"},
    ),
    "gemma4 wrapper": ("gemma4 wrapper", {}, {"targets": (*LAYERS, "per_layer/out")}),
    "gemma4_unified wrapper": ("gemma4_unified wrapper", {}, {}),
    "gemma4_unified_text": ("gemma4_unified_text", {}, {}),
    "phi3": ("phi3", {}, {}),
    "phi3, ranks": ("phi3", {}, {"ranks": ("attention/key=2", "ffn/up=5"), "scaling": "sqrt_rank"}),
    "phi3, some": ("phi3", {}, {"targets": ("attention/(query|value)", "ffn/up")}),
    "phi3, dora": ("phi3", {}, {"method": "dora"}),
    "gpt2": ("gpt2", {}, {"targets": (*LAYERS, "embedding")}),
    "gpt2, dora": ("gpt2", {}, {"method": "dora"}),
    "gpt_neox": ("gpt_neox", {}, {"targets": (*LAYERS, "embedding", "head"), "method": "dora"}),
    "mixtral": ("mixtral", {}, {"targets": ("experts/(up|down|router)",), "scaling": "sqrt_rank"}),
    "gpt_oss": ("gpt_oss", {}, {"targets": (*LAYERS, "experts/(gate|up|down|router)")}),
    "gpt_oss, ranks": ("gpt_oss", {}, {"targets": ("experts/(gate|down)",), "ranks": ("experts/gate=2",)}),
    "qwen3_moe": (
        "qwen3_moe",
        {},
        {"targets": ("experts/(gate|up|down)",), "ranks": ("experts/up=2",), "method": "pissa"},
    ),
    "deepseek_v3": ("deepseek_v3", {}, {"targets": EVERYWHERE}),
    "deepseek_v3, dora": ("deepseek_v3", {}, {"targets": ("attention/.*",), "method": "dora"}),
    "deepseek_v3 plain": ("deepseek_v3 plain", {}, {"targets": EVERYWHERE}),
    "glm4_moe": ("glm4_moe", {}, {"targets": EVERYWHERE}),
    "glm4_moe_lite": ("glm4_moe_lite", {}, {"targets": ("attention/.*", "shared/down")}),
    "qwen3_next": ("qwen3_next", {}, {"targets": (*EVERYWHERE, *DELTA, "shared_gate")}),
    "qwen3_next, ranks": ("qwen3_next", {}, {"targets": DELTA, "ranks": ("delta/(query|beta)=2",)}),
    "qwen3_next biases": ("qwen3_next biases", {}, {"targets": ("attention/.*",), "method": "dora"}),
    "qwen3_5_text": ("qwen3_5_text", {}, {"targets": (*LAYERS, *DELTA)}),
    "qwen3_5_moe_text": ("qwen3_5_moe_text", {}, {"targets": (*EVERYWHERE, *DELTA)}),
    "qwen3_5 wrapper": ("qwen3_5 wrapper", {}, {"targets": (*LAYERS, *DELTA)}),
    "qwen3_5_moe wrapper": ("qwen3_5_moe wrapper", {}, {"targets": (*DELTA, "experts/(up|down)")}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OUT)
def test_ours_in_peft_and_back(name, base_of, tmp_path):
    case, changes, fields = OUT[name]
    base, config = base_of(case, **changes), settings(**fields)
    ours, said = trained(base, config), settings_of(config)
    expected = logits(base, ours, said)
    assert np.abs(expected - base.plain).max() > 100 * TOLERANCE  # the adapter is seen
    directory = write(base, ours, said, tmp_path / "adapter")
    np.testing.assert_allclose(in_torch(base, directory), expected, atol=TOLERANCE)
    back = read(base, directory)
    if fields.get("method") != "pissa" and not fields.get("ranks"):  # else as LoRA; B takes up another scale
        assert_same(back.in_layout("unrolled"), ours)
        assert back.settings == said
    else:
        np.testing.assert_allclose(logits(base, back.arrays, back.settings), expected, atol=TOLERANCE)


PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SLOT = {"target_modules": PROJECTIONS}
# What comes in: (family, changes of its config, peft's settings).
IN = {
    "llama, rslora": ("llama", {}, SLOT | {"use_rslora": True, "bias": "none", "lora_dropout": 0.1}),
    "llama, dora": ("llama", {}, SLOT | {"use_dora": True}),
    "llama, pissa": ("llama", {}, SLOT | {"init_lora_weights": "pissa"}),
    "llama, patterns": (
        "llama",
        {},
        SLOT
        | {
            "rank_pattern": {r"layers\.1\.self_attn\.q_proj": 2, "up_proj": 5, "q_proj": 4},
            "alpha_pattern": {"layers.0.mlp.down_proj": 11, "v_proj": 2},
        },
    ),
    "llama, last layer": ("llama", {}, SLOT | {"layers_to_transform": [1], "layers_pattern": "layers"}),
    "llama, all": ("llama", {}, {"target_modules": [*PROJECTIONS, "embed_tokens", "lm_head"]}),
    "llama, tied": (
        "llama",
        {"tie_word_embeddings": True},
        {"target_modules": [*PROJECTIONS, "embed_tokens"], "ensure_weight_tying": True},
    ),
    "qwen2": ("qwen2", {}, {"target_modules": "all-linear"}),
    "gemma2": ("gemma2", {}, {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}),
    **{family: (family, {}, {"target_modules": "all-linear"}) for family in PLAIN},
    "granitemoehybrid": ("granitemoehybrid", {}, {"target_modules": ["q_proj", "input_linear", "output_linear"]}),
    "gemma3 wrapper": ("gemma3 wrapper", {}, {"target_modules": r".*language_model.*\.(q_proj|up_proj)"}),
    "mistral3 wrapper": (
        "mistral3 wrapper",
        {},
        {
            "target_modules": PROJECTIONS,
            "exclude_modules": r".*(vision_tower|projector).*",
            "rank_pattern": {r"model\.language_model\.layers\.1\.self_attn\.q_proj": 2},
        },
    ),
    "gemma4_text": ("gemma4_text", {}, {"target_modules": "all-linear"}),
    "gemma4_text with experts": (
        "gemma4_text with experts",
        {},
        {
            "target_modules": ["q_proj", "proj"],
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj", "mlp.up_proj.weight"],
            "rank_pattern": {"experts.down_proj": 2},
        },
    ),
    "gemma4_text with shared keys": ("gemma4_text with shared keys", {}, {"target_modules": "all-linear"}),
    "gemma4 wrapper": ("gemma4 wrapper", {}, {"target_modules": r".*language_model.*\.(k_proj|per_layer_input_gate)"}),
    "gemma4_unified wrapper": ("gemma4_unified wrapper", {}, {"target_modules": r".*language_model.*\.o_proj"}),
    "gemma4_unified_text": ("gemma4_unified_text", {}, {"target_modules": "all-linear", "use_dora": True}),
    "phi3": ("phi3", {}, {"target_modules": ["qkv_proj", "gate_up_proj"], "use_rslora": True}),
    "phi3, dora": ("phi3", {}, {"target_modules": ["qkv_proj"], "use_dora": True}),
    "gpt2": ("gpt2", {}, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "gpt_neox": ("gpt_neox", {}, {"target_modules": "all-linear"}),
    "mixtral": (
        "mixtral",
        {},
        {
            "target_modules": ["q_proj"],
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"],
            "rank_pattern": {"experts.down_proj": 2},
        },
    ),
    "gpt_oss": (
        "gpt_oss",
        {},
        {
            "target_modules": ["q_proj", "o_proj"],
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.router.weight"],
            "rank_pattern": {"experts.down_proj": 2},
        },
    ),
    "gpt_oss, one parameter": ("gpt_oss", {}, {"target_modules": [], "target_parameters": ["experts.gate_up_proj"]}),
    "qwen3_moe": ("qwen3_moe", {}, {"target_modules": ["v_proj"], "target_parameters": ["mlp.experts.down_proj"]}),
    "deepseek_v3": (
        "deepseek_v3",
        {},
        {
            "target_modules": "all-linear",
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"],
        },
    ),
    "deepseek_v3 plain": (
        "deepseek_v3 plain",
        {},
        {"target_modules": ["q_proj", "kv_b_proj"], "target_parameters": ["shared_experts.up_proj.weight"]},
    ),
    "glm4_moe": ("glm4_moe", {}, {"target_modules": "all-linear", "target_parameters": ["mlp.experts.down_proj"]}),
    "glm4_moe_lite": (
        "glm4_moe_lite",
        {},
        {"target_modules": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"], "use_dora": True},
    ),
    "qwen3_next": (
        "qwen3_next",
        {},
        {
            "target_modules": ["q_proj", "in_proj_qkvz", "in_proj_ba", "out_proj", "shared_expert_gate"],
            "target_parameters": ["mlp.experts.gate_up_proj"],
        },
    ),
    "qwen3_5_text": ("qwen3_5_text", {}, {"target_modules": "all-linear"}),
    "qwen3_5_moe_text": (
        "qwen3_5_moe_text",
        {},
        {"target_modules": ["in_proj_qkv", "in_proj_z"], "target_parameters": ["mlp.experts.down_proj"]},
    ),
    "qwen3_5 wrapper": ("qwen3_5 wrapper", {}, {"target_modules": r".*language_model.*\.(q_proj|in_proj_qkv|up_proj)"}),
    "qwen3_5_moe wrapper": ("qwen3_5_moe wrapper", {}, {"target_modules": r".*language_model.*\.(q_proj|in_proj_b)"}),
}


def test_every_family_goes_both_ways():
    known = FAMILIES.keys() | WRAPPERS.keys()
    assert known == {families.CASES[case][0]["model_type"] for case, *_ in OUT.values()}
    assert known == {families.CASES[case][0]["model_type"] for case, *_ in IN.values()}


def made_by_peft(base: Base, fields: dict, directory: Path) -> np.ndarray:
    """Saves an adapter of peft's own, far from its beginning; gives its logits."""
    model = copy.deepcopy(base.torch_model)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=7, **fields)).eval()
    conversion = {}
    if fields.get("init_lora_weights") == "pissa":
        wrapped.peft_config["default"].init_lora_weights = True
        wrapped.save_pretrained(directory.parent / "begun")
        wrapped.peft_config["default"].init_lora_weights = "pissa"
        conversion = {"path_initial_model_for_weight_conversion": str(directory.parent / "begun")}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name and not (fields.get("ensure_weight_tying") and "lm_head" in name):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    expected = families.torch_logits(wrapped, IDS)
    wrapped.save_pretrained(directory, **conversion)
    return expected


@pytest.mark.parametrize("name", IN)
def test_from_peft_to_here_and_out_again(name, base_of, tmp_path):
    case, changes, fields = IN[name]
    base = base_of(case, **changes)
    expected = made_by_peft(base, fields, tmp_path / "theirs")
    assert np.abs(expected - base.plain).max() > 100 * TOLERANCE  # the adapter is seen
    found = read(base, tmp_path / "theirs")
    found.check_copies(base.params, "theirs")
    np.testing.assert_allclose(logits(base, found.arrays, found.settings), expected, atol=TOLERANCE)
    directory = write(base, found.arrays, found.settings, tmp_path / "ours")
    np.testing.assert_allclose(in_torch(base, directory), expected, atol=TOLERANCE)


def test_experts_under_their_older_names(base_of, tmp_path):
    """transformers 4 had a layer for each expert; peft still loads such adapters."""
    base, rng, tensors = base_of("mixtral"), np.random.default_rng(0), {}
    for layer in range(2):
        for expert in range(4):
            for name, (fan_out, fan_in) in {"w1": (48, 32), "w2": (32, 48), "w3": (48, 32)}.items():
                prefix = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}"
                tensors[f"{prefix}.lora_A.weight"] = 0.3 * rng.standard_normal((3, fan_in), np.float32)
                tensors[f"{prefix}.lora_B.weight"] = 0.3 * rng.standard_normal((fan_out, 3), np.float32)
    fields = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 6, "bias": "none"}
    (tmp_path / CONFIG).write_text(json.dumps(fields | {"target_modules": ["w1", "w2", "w3"]}))
    save_file(tensors, tmp_path / WEIGHTS)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base.torch_model), tmp_path).eval()
    found = read(base, tmp_path)
    expected = families.torch_logits(theirs, IDS)
    np.testing.assert_allclose(logits(base, found.arrays, found.settings), expected, atol=TOLERANCE)
    assert np.abs(expected - base.plain).max() > 100 * TOLERANCE


def test_what_is_beside_experts_under_its_older_name(base_of, tmp_path):
    """As transformers 4 had adapters of it: of layers, whose names `peft` takes for those of experts by now."""
    base, rng, tensors = base_of("deepseek_v3 plain"), np.random.default_rng(0), {}
    for layer in range(2):
        prefix = f"base_model.model.model.layers.{layer}.mlp.shared_experts.up_proj"
        tensors[f"{prefix}.lora_A.weight"] = rng.standard_normal((3, 32), np.float32)
        tensors[f"{prefix}.lora_B.weight"] = rng.standard_normal((48, 3), np.float32)
    fields = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 6, "bias": "none"}
    (tmp_path / CONFIG).write_text(json.dumps(fields | {"target_modules": ["up_proj"]}))
    save_file(tensors, tmp_path / WEIGHTS)
    found = reference.flat(read(base, tmp_path).in_layout("unrolled"))
    assert found.keys() == {f"layers_{layer}/shared/up/{name}" for layer in range(2) for name in ("a", "b")}
    prefix = "base_model.model.model.layers.1.mlp.shared_experts.up_proj"
    np.testing.assert_array_equal(found["layers_1/shared/up/a"], tensors[f"{prefix}.lora_A.weight"].T)
    np.testing.assert_array_equal(found["layers_1/shared/up/b"], tensors[f"{prefix}.lora_B.weight"].T)


def test_magnitudes_of_a_fused_part_without_an_update(base_of, tmp_path):
    """All other parts have ranks of their own, this one has none: its magnitudes count all the same."""
    base = base_of("phi3")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["qkv_proj"], use_dora=True)
    wrapped = peft.get_peft_model(copy.deepcopy(base.torch_model), config).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
                parameter[:32, 0] = 0.3
                parameter[32:48, 1] = 0.2
            if "magnitude" in name:
                parameter.mul_(1.5)
    expected = families.torch_logits(wrapped, IDS)
    wrapped.save_pretrained(tmp_path)
    found = read(base, tmp_path)
    np.testing.assert_allclose(logits(base, found.arrays, found.settings), expected, atol=TOLERANCE)


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_an_adapter_of_one_use_of_a_tied_weight_is_merged_as_the_error_says(module, base_of, tmp_path):
    """Read as one weight, the adapter would be another model; so would what peft makes of the tied base."""
    base = base_of("llama", tie_word_embeddings=True)
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(
        copy.deepcopy(base.torch_model), peft.LoraConfig(target_modules=[module, "q_proj"], init_lora_weights=False)
    ).eval()
    wrapped.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="alone has an adapter") as error:
        read(base, tmp_path / "adapter")
    tiny.tokenizer().save_pretrained(base.directory)
    paths = {"BASE": base.directory, "ADAPTER": tmp_path / "adapter", "MERGED": tmp_path / "merged"}
    names = {name: str(path) for name, path in paths.items()}
    lines = str(error.value).split("MERGED as the model:\n")[1].splitlines()
    modules = {"torch": torch, "peft": peft, "transformers": transformers}
    exec("\n".join(line.strip() for line in lines), names | modules)
    model, params = load_pretrained(tmp_path / "merged", execution=Execution(layer_layout="unrolled"))
    found = np.asarray(reference.jit(model.apply)({"params": params}, IDS))
    np.testing.assert_allclose(found, families.torch_logits(wrapped, IDS), atol=1e-4)
    assert np.abs(found - np.asarray(reference.jit(base.model.apply)({"params": base.params}, IDS))).max() > 0.01
