"""Writes our adapters as a PEFT adapter directory: adapter_config.json and tensors. `peft_loading` reads them back.

One stored layer of a checkpoint may be several weights here (Phi-3's `qkv_proj`). Their adapters then become one
adapter whose rank is the sum of theirs: the A's are stacked, and the B's are blocks, each with the outputs of its
weight and zeros elsewhere. PiSSA is written as a LoRA of twice the rank (`adapters.pissa`). The conversion is exact,
except that B is rounded where weights that share a stored layer differ in rank, and so in scale.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from sft_jax.models.config import DecoderConfig
from sft_jax.models.families.tables import TensorRule
from sft_jax.models.layouts import SCAN, UNROLLED, layout_of, resolved
from sft_jax.models.loading import place_of
from sft_jax.models.peft_modules import HEAD, PeftModule, peft_modules, weight_path
from sft_jax.options import AdapterOptions
from sft_jax.sources.peft import PREFIX
from sft_jax.sources.safetensors_writer import PendingTensor
from sft_jax.sources.wrappers import Layout, Wrapper

Tree = Any
_TIED_BY_PEFT = "embed_tokens"  # the only name of a tied embedding that `peft` knows


@dataclasses.dataclass(frozen=True)
class AdapterSettings:
    """What all adapters of a model have in common; ranks are those of the arrays.

    Attributes:
        method: `lora`, `dora` or `pissa`.
        alpha: the update is scaled by alpha / rank, or by alpha / sqrt(rank) with `rslora`.
        rslora: see `alpha`.
        dropout: of the inputs, in training.
    """

    method: str
    alpha: float
    rslora: bool = False
    dropout: float = 0.0

    @property
    def power(self) -> float:
        """Alpha is divided by the rank to this power."""
        return 0.5 if self.rslora else 1.0

    def hyper(self) -> dict[str, float]:
        """The hyperparameters that the scale is computed from, for inference: without dropout."""
        return {"adapter_alpha": self.alpha, "adapter_rank_power": self.power, "adapter_dropout": 0.0}


def settings_of(adapter: AdapterOptions) -> AdapterSettings:
    """Of the adapter that a run trains."""
    return AdapterSettings(adapter.method, adapter.alpha, adapter.scaling == "sqrt_rank", adapter.dropout)


def peft_adapter(
    adapters: Tree,
    settings: AdapterSettings,
    hf_config: dict,
    config: DecoderConfig,
    base_name: str,
    revision: str | None = None,
    dtype: str = "float32",
    wrapper: Wrapper | None = None,
) -> tuple[dict, dict[str, PendingTensor]]:
    """(adapter_config.json, tensors of adapter_model.safetensors by name) that `peft` loads as the same function.

    A tensor is fetched and cast only when it is written.

    Args:
        adapters: what is trained and its constants (`a` [in, rank], `b` [rank, out], …) at the paths of the weights
            they are beside, in either layout; without their collection.
        settings: method, alpha, scaling, dropout.
        hf_config: names the family.
        config: the decoder they adapt.
        base_name: of the base model, from which `peft` loads it: a directory or a hub name.
        revision: of a hub name.
        dtype: dtype of the tensors.
        wrapper: around the text model that they adapt, where that is no model of its own.

    Raises:
        ValueError: adapters that `peft` has no words for (DoRA beside a part of a stored layer or beside a router), or
            beside no weight of this model; all are named.
    """
    arrays = _Arrays(adapters, settings, config)
    layout = None if wrapper is None else wrapper.kind.layouts[0]
    modules = list(_beside(arrays, hf_config, config, layout))
    _check(modules, arrays)
    names = {adapted.module.name for adapted in modules}
    stored, tensors, fields = np.dtype(jnp.dtype(dtype)), {}, {}
    for adapted in modules:
        module, ranks = adapted.module, adapted.ranks
        fields[module.target] = (adapted.total_rank, _number(adapted.alpha))
        made = adapted.tensors(module.tensors(names))
        if module.embedding and config.tie_embeddings:  # the head reads the same numbers the other way round
            fields[HEAD] = fields[module.target]
            made[f"{HEAD}.lora_A.weight"] = ((sum(ranks), module.fan_out), lambda it=adapted: it.b().T)
            made[f"{HEAD}.lora_B.weight"] = ((module.fan_in, sum(ranks)), lambda it=adapted: it.a().T)
        tensors |= {PREFIX + name: _pending(shape, stored, make) for name, (shape, make) in made.items()}
    said = _config(fields, modules, settings, config, base_name, revision)
    if wrapper is not None:  # towers have layers of the same names
        said["exclude_modules"] = rf"(.*\.)?({'|'.join(wrapper.kind.skipped)})\..*"
    return said, tensors


@dataclasses.dataclass(frozen=True)
class _Arrays:
    """The arrays of a tree of adapters, each as plain LoRA or DoRA has it."""

    tree: Tree
    settings: AdapterSettings
    config: DecoderConfig

    @functools.cached_property
    def flat(self) -> dict[str, Any]:
        return flatten_dict(self.tree, sep="/")

    @functools.cached_property
    def weights(self) -> set[str]:
        """Paths of the weights with adapters, in the layout of the tree."""
        return {path.rpartition("/")[0] for path in self.flat}

    @functools.cached_property
    def layout(self) -> str:
        """Of the tree, which may lack layers."""
        found = layout_of(self.tree) or UNROLLED
        return found if found in (SCAN, UNROLLED) else resolved(SCAN, self.config)

    def path(self, rule: TensorRule) -> tuple[str, tuple[int, ...]]:
        """(path of an adapter in the tree, index of its layer and expert in the arrays there)."""
        path, place = place_of(rule, self.layout, self.config.num_layers)
        return path.removesuffix("/kernel"), tuple(number for number, _ in place)

    def rank(self, rule: TensorRule) -> int:
        """Rank of the trained arrays."""
        return self.flat[self.path(rule)[0] + "/a"].shape[-1]

    def fetch(self, rule: TensorRule, name: str) -> np.ndarray:
        """`a` [in, rank], `b` [rank, out] or `magnitude` [out], float32; of PiSSA with its beginning behind it."""
        path, index = self.path(rule)
        array = np.asarray(self.flat[f"{path}/{name}"][index], np.float32)
        if self.settings.method != "pissa":
            return array
        constant = np.asarray(self.flat[f"{path}/constant_{name}"][index], np.float32)
        return np.concatenate([array, constant], -1) if name == "a" else np.concatenate([array, -constant], -2)


@dataclasses.dataclass(frozen=True)
class _Adapted:
    """A module with those of its weights that have adapters."""

    module: PeftModule
    rules: tuple[TensorRule, ...]
    arrays: _Arrays

    @property
    def is_whole(self) -> bool:
        return len(self.rules) == len(self.module.rules)

    @functools.cached_property
    def groups(self) -> list[tuple[TensorRule, ...]]:
        """The rules of each expert; all of them where there are none."""
        if not self.module.num_experts:
            return [self.rules]
        return [tuple(r for r in self.rules if r.part[0] == number) for number in range(self.module.num_experts)]

    @property
    def trained_ranks(self) -> list[int]:
        return [self.arrays.rank(rule) for rule in self.groups[0]]

    @property
    def ranks(self) -> list[int]:
        return [rank * (2 if self.arrays.settings.method == "pissa" else 1) for rank in self.trained_ranks]

    @property
    def total_rank(self) -> int:
        return sum(self.ranks)

    @property
    def alpha(self) -> float:
        """With the total rank, the scale of the first weight."""
        settings = self.arrays.settings
        return settings.alpha * (self.total_rank / self.trained_ranks[0]) ** settings.power

    def a(self) -> np.ndarray:
        """[experts rank, in]."""
        return np.concatenate([self.arrays.fetch(rule, "a").T for rules in self.groups for rule in rules])

    def b(self) -> np.ndarray:
        """[out, rank experts], experts innermost, as `peft` has it."""
        array = np.zeros((self.module.fan_out, self.total_rank, len(self.groups)), np.float32)
        first, power = self.trained_ranks[0], self.arrays.settings.power
        for expert, rules in enumerate(self.groups):
            start = 0
            for rule, rank, trained in zip(rules, self.ranks, self.trained_ranks, strict=True):
                ours = self.arrays.fetch(rule, "b")
                if trained != first:
                    ours = ours * np.float32((first / trained) ** power)
                self.module.write_part(rule, ours, array[:, start : start + rank, expert])
                start += rank
        return array.reshape(self.module.fan_out, -1)

    def magnitude(self) -> np.ndarray:
        """[out]."""
        array = np.zeros((self.module.fan_out, 1), np.float32)
        for rule in self.rules:
            self.module.write_part(rule, self.arrays.fetch(rule, "magnitude")[None], array)
        return array[:, 0]

    def tensors(self, prefix: str) -> dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]]:
        """Name -> (shape, makes it)."""
        names = (
            ("lora_embedding_A", "lora_embedding_B") if self.module.embedding else ("lora_A.weight", "lora_B.weight")
        )
        rank = self.total_rank * len(self.groups)
        made = {
            f"{prefix}.{names[0]}": ((rank, self.module.fan_in), self.a),
            f"{prefix}.{names[1]}": ((self.module.fan_out, rank), self.b),
        }
        if self.arrays.settings.method == "dora":
            made[f"{prefix}.lora_magnitude_vector"] = ((self.module.fan_out,), self.magnitude)
        return made


def _beside(arrays: _Arrays, hf_config: dict, config: DecoderConfig, layout: Layout | None) -> Iterator[_Adapted]:
    for module in peft_modules(hf_config, config, layout):
        rules = tuple(rule for rule in module.rules if arrays.path(rule)[0] in arrays.weights)
        if rules:
            yield _Adapted(module, rules, arrays)


def _pending(shape: tuple[int, ...], dtype: np.dtype, make: Callable[[], np.ndarray]) -> PendingTensor:
    return PendingTensor(shape, dtype, lambda: np.ascontiguousarray(make().astype(dtype)))


def _check(modules: list[_Adapted], arrays: _Arrays) -> None:
    """What cannot be written, raised together."""
    known = {arrays.path(rule)[0] for adapted in modules for rule in adapted.rules}
    problems = [f"{path}: this model family has no such weight" for path in sorted(arrays.weights - known)]
    if not modules:
        problems.append("there is no adapter")
    for adapted in modules if arrays.settings.method == "dora" else ():
        if adapted.module.parameter:
            problems.append(f"{adapted.module.name} is a parameter in peft, beside which there is no DoRA")
        elif not adapted.is_whole:
            there = ", ".join(weight_path(rule) for rule in adapted.rules)
            problems.append(
                f"{adapted.module.name} is one layer in peft, with magnitudes of all its outputs, and DoRA is on "
                f"{there} alone"
            )
    if problems:
        raise ValueError("as a PEFT adapter this cannot be written; --format=merged can:\n  " + "\n  ".join(problems))


def _config(
    fields: dict[str, tuple[int, float]],
    modules: list[_Adapted],
    settings: AdapterSettings,
    config: DecoderConfig,
    base_name: str,
    revision: str | None,
) -> dict:
    """What `peft` itself writes; the rank and alpha of most modules, and patterns for the others."""
    (rank, alpha), _ = collections.Counter(fields.values()).most_common(1)[0]
    parameters = sorted({adapted.module.target for adapted in modules if adapted.module.parameter})
    tied = [a.module.target for a in modules if a.module.embedding and config.tie_embeddings]
    targets = {adapted.module.target for adapted in modules if not adapted.module.parameter}
    if tied and tied != [_TIED_BY_PEFT]:  # beside GPT-2's `wte` it takes the head for a layer of its own
        targets.add(HEAD)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "revision": revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0 if parameters else settings.dropout,  # peft knows none on parameters
        "target_modules": sorted(targets),
        "target_parameters": parameters or None,
        "rank_pattern": {re.escape(target): r for target, (r, _) in fields.items() if r != rank},
        "alpha_pattern": {re.escape(target): a for target, (_, a) in fields.items() if a != alpha},
        "use_rslora": settings.rslora,
        "use_dora": settings.method == "dora",
        "init_lora_weights": True,
        "bias": "none",
        "fan_in_fan_out": any(
            rule.transposed for adapted in modules if not adapted.module.parameter for rule in adapted.rules
        ),
        "ensure_weight_tying": tied == [_TIED_BY_PEFT],
        "modules_to_save": None,
    }


def _number(value: float) -> int | float:
    return int(value) if math.isfinite(value) and value == int(value) else float(value)
