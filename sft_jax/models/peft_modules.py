"""The torch modules that `peft` adapts, and which of our weights each of them holds.

Made from a family's table. A stored layer may be several of ours (Phi-3's `qkv_proj`): its outputs are theirs, in the
order that the rules' views know.
"""

import dataclasses
import re

import numpy as np

from sft_jax.models.config import DecoderConfig
from sft_jax.models.families import get_family
from sft_jax.models.families.tables import TensorRule

# Module names of transformers 5 where they are not those of the files.
_LIVE = {"embed_out": "lm_head"}  # GPT-NeoX
_IN_LAYER = re.compile(r".*\.(?:layers|h)\.\d+\.(?P<rest>.+)")
_NUMBERED = re.compile(r".*\.experts\.\d+\.(?P<rest>.+)")
HEAD = "lm_head"


@dataclasses.dataclass(frozen=True)
class PeftModule:
    """A module.

    Attributes:
        name: as `peft` has it, `model.layers.0.self_attn.q_proj`.
        rules: of our weights that are its outputs.
        fan_in: inputs.
        fan_out: outputs.
        embedding: it is a token embedding; its inputs are tokens.
    """

    name: str
    rules: tuple[TensorRule, ...]
    fan_in: int
    fan_out: int
    embedding: bool

    @property
    def target(self) -> str:
        """What the modules of all layers have in common: `self_attn.q_proj`, `embed_tokens`, and `w1` of experts."""
        found = _NUMBERED.fullmatch(self.name) or _IN_LAYER.fullmatch(self.name)
        return found["rest"] if found else self.name.rpartition(".")[2]


def peft_modules(hf_config: dict, config: DecoderConfig) -> dict[str, PeftModule]:
    """Every module that can have an adapter here, by its name, in the order of the family's table."""
    by_source: dict[str, list[TensorRule]] = {}
    for rule in get_family(hf_config).tensor_table(config):
        if rule.path is not None and (rule.path.endswith("/kernel") or rule.path in ("embedding", "head")):
            by_source.setdefault(rule.source.removesuffix(".weight"), []).append(rule)
    made = (_module(_LIVE.get(source, source), rules) for source, rules in by_source.items())
    return {module.name: module for module in made}


def live_name(module: str) -> str:
    """The module's name today, of one that an older `transformers` gave it."""
    return _LIVE.get(module, module)


def _module(name: str, rules: list[TensorRule]) -> PeftModule:
    first, embedding = rules[0], rules[0].path == "embedding"
    fan_out, fan_in = first.shape[::-1] if first.turned or embedding else first.shape
    return PeftModule(name, tuple(rules), fan_in, fan_out, embedding)


def weight_path(rule: TensorRule) -> str:
    """Where the adapter of a weight is: the path of the weight without `/kernel`, unrolled."""
    return rule.path.removesuffix("/kernel")


def part_of(rule: TensorRule, outputs: np.ndarray) -> np.ndarray:
    """[k, O of the weight], of an array [O, k] over all outputs of its module."""
    return _seen(rule, outputs).reshape(outputs.shape[1], -1)


def write_part(rule: TensorRule, ours: np.ndarray, outputs: np.ndarray) -> None:
    """The inverse of `part_of`: puts [k, O of the weight] into its place."""
    seen = _seen(rule, outputs)
    seen[...] = ours.reshape(seen.shape)


def _seen(rule: TensorRule, outputs: np.ndarray) -> np.ndarray:
    if rule.path == "embedding":
        return outputs.T
    return rule.view(outputs.T if rule.turned else outputs)
