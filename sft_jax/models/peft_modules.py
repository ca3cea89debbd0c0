"""The torch modules and parameters that `peft` adapts, and which of our weights each of them holds.

They are derived from a family's table of tensors. A stored layer may hold several of our weights (Phi-3's `qkv_proj`);
its outputs are split among them in the order that the views of the rules give. The experts of a layer are one parameter
in transformers 5, `gate_up_proj` [experts, 2 ffn, in] or `down_proj`, which `peft` adapts by `target_parameters`; those
of gpt-oss are [experts, in, 2 ffn], and those of Gemma 4 lie beside the feed-forward layer and not in it. Layers called
`gate_proj`, `up_proj` and `down_proj` in a model with experts are adapted by their `weight` likewise: as
`target_modules`, `peft` takes these names for those of experts.
"""

import dataclasses
import re

import numpy as np

from sft_jax.models.config import DecoderConfig
from sft_jax.models.families import tensors_of
from sft_jax.models.families.tables import TensorRule
from sft_jax.sources.wrappers import Layout, renamed_module

# Module names of transformers 5 where they are not those of the files.
_LIVE = {"embed_out": "lm_head"}  # GPT-NeoX
_IN_LAYER = re.compile(r".*\.(?:layers|h)\.\d+\.(?P<rest>.+)")
_BESIDE_EXPERTS = re.compile(r"layers_\d+/(ffn|shared)/.*")
_EXPERT = re.compile(r"(?P<layer>.+?)(?P<within>\.mlp|\.block_sparse_moe)?\.experts\.(?:\d+\.)?\w+")
_OF_EXPERTS = {"gate": "gate_up_proj", "up": "gate_up_proj", "down": "down_proj"}
HEAD = "lm_head"


@dataclasses.dataclass(frozen=True)
class PeftModule:
    """A module, or a parameter that is adapted by itself.

    Attributes:
        module: as `peft` has it, `model.layers.0.self_attn.q_proj`.
        parameter: of the module, where it is no layer of torch's: `gate_up_proj`; empty for layers.
        rules: of our weights that are its outputs.
        fan_in: inputs.
        fan_out: outputs.
        embedding: it is a token embedding; its inputs are tokens.
        num_experts: how many matrices it is; 0 for one without experts.
    """

    module: str
    parameter: str
    rules: tuple[TensorRule, ...]
    fan_in: int
    fan_out: int
    embedding: bool = False
    num_experts: int = 0

    @property
    def name(self) -> str:
        """What the patterns of `peft` are matched with."""
        return f"{self.module}.{self.parameter}" if self.parameter else self.module

    @property
    def is_head(self) -> bool:
        """Whether it gives the logits."""
        return self.module.rpartition(".")[2] == HEAD

    @property
    def target(self) -> str:
        """What those of all layers have in common: `self_attn.q_proj`, `embed_tokens`, `mlp.experts.down_proj`."""
        found = _IN_LAYER.fullmatch(self.name)
        return found["rest"] if found else self.name.rpartition(".")[2]

    def tensors(self, beside: set[str]) -> str:
        """What the names of its tensors begin with.

        Args:
            beside: names of everything that is adapted: of two parameters of a module, the later is around the earlier.
        """
        is_inner = self.parameter == "gate_up_proj" and f"{self.module}.down_proj" in beside
        return f"{self.module}.base_layer" if is_inner else self.module

    def part_of(self, rule: TensorRule, outputs: np.ndarray) -> np.ndarray:
        """[k, O of the weight], of an array [O, k] over all outputs (of one expert)."""
        return self._seen(rule, outputs).reshape(outputs.shape[1], -1)

    def write_part(self, rule: TensorRule, ours: np.ndarray, outputs: np.ndarray) -> None:
        """The inverse of `part_of`: puts [k, O of the weight] into its place."""
        seen = self._seen(rule, outputs)
        seen[...] = ours.reshape(seen.shape)

    def _seen(self, rule: TensorRule, outputs: np.ndarray) -> np.ndarray:
        if self.embedding:
            return outputs.T
        if len(rule.shape) == 3:  # every expert is this one, so that the view finds it under its number
            one = outputs.T if rule.transposed else outputs
            strides = (0, *one.strides)
            return rule.view(np.lib.stride_tricks.as_strided(one, (self.num_experts, *one.shape), strides))
        if self.num_experts:
            size = rule.shape[0]
            start = size if rule.path.endswith("/up/kernel") else 0
            return rule.view(outputs[start : start + size])
        return rule.view(outputs.T if rule.transposed else outputs)


def peft_modules(hf_config: dict, config: DecoderConfig, layout: Layout | None = None) -> list[PeftModule]:
    """Everything that can have an adapter here, in the order of the family's table.

    Args:
        hf_config: names the family.
        config: the decoder.
        layout: what the modules of a text model are called in its multimodal wrapper; None for a model of its own.
    """
    by_name: dict[tuple[str, str], list[TensorRule]] = {}
    for rule in _adaptable(hf_config, config):
        by_name.setdefault(_live(rule, config), []).append(rule)
    layout = layout or {}
    return [_module(renamed_module(module, layout), parameter, rules) for (module, parameter), rules in by_name.items()]


def older_modules(hf_config: dict, config: DecoderConfig, layout: Layout | None = None) -> list[PeftModule]:
    """Experts, router and what is beside them as transformers 4 had them, when each was a layer."""
    rules = [rule for rule in _adaptable(hf_config, config) if _live(rule, config)[1] and len(rule.shape) == 2]
    names = [renamed_module(rule.source.removesuffix(".weight"), layout or {}) for rule in rules]
    return [_module(name, "", [rule]) for name, rule in zip(names, rules, strict=True)]


def _adaptable(hf_config: dict, config: DecoderConfig) -> list[TensorRule]:
    table = tensors_of(hf_config, config)
    paths = ("embedding", "head")
    return [rule for rule in table if rule.path and (rule.path.endswith("/kernel") or rule.path in paths)]


def _live(rule: TensorRule, config: DecoderConfig) -> tuple[str, str]:
    """(module, parameter)."""
    source = rule.source.removesuffix(".weight")
    if config.num_experts and _BESIDE_EXPERTS.fullmatch(rule.path):
        return source, "weight"
    if "/experts/" not in rule.path:
        return _LIVE.get(source, source), ""
    found = _EXPERT.fullmatch(source)
    if found is None:
        return source.replace(".block_sparse_moe.", ".mlp."), "weight"
    return f"{found['layer']}{'.mlp' if found['within'] else ''}.experts", _OF_EXPERTS[
        weight_path(rule).rpartition("/")[2]
    ]


def _module(module: str, parameter: str, rules: list[TensorRule]) -> PeftModule:
    first, embedding, of_all_experts = rules[0], rules[0].path == "embedding", len(rules[0].shape) == 3
    fan_out, fan_in = first.shape[::-1][:2] if first.transposed or embedding else first.shape[-2:]
    num_experts = first.part[1] if parameter and first.part else 0
    if parameter == "gate_up_proj" and not of_all_experts:
        fan_out *= 2
    return PeftModule(module, parameter, tuple(rules), fan_in, fan_out, embedding, num_experts)


def weight_path(rule: TensorRule) -> str:
    """Where the adapter of a weight is: the path of the weight without `/kernel`, unrolled."""
    return rule.path.removesuffix("/kernel")
