"""From our adapters to the two files of a PEFT adapter directory; `peft_loading` is the way back.

Beside a stored layer that is several weights here, their adapters become one of the sum of their ranks: the A's one
below the other, the B's in blocks, each with the outputs of its weight and zeros elsewhere. PiSSA goes as a LoRA of
twice the rank (`adapters.pissa`). Nothing is lost on the way, but for the rounding of B where weights of unlike ranks,
hence scales, share a stored layer.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from sft_jax.models.config import DecoderConfig
from sft_jax.models.families.tables import TensorRule
from sft_jax.models.layouts import layout_of
from sft_jax.models.loading import place_of
from sft_jax.models.peft_modules import HEAD, PeftModule, peft_modules, weight_path, write_part
from sft_jax.sources.peft import PREFIX
from sft_jax.sources.safetensors_writer import PendingTensor

Tree = Any


@dataclasses.dataclass(frozen=True)
class AdapterSettings:
    """What is said of all adapters of a model at once; ranks are those of the arrays.

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

    def scale(self, rank: int) -> float:
        """The factor of an update of that rank."""
        return self.alpha / rank**self.power

    @property
    def power(self) -> float:
        """Of the rank, that alpha is divided by."""
        return 0.5 if self.rslora else 1.0


def peft_adapter(
    adapters: Tree,
    settings: AdapterSettings,
    hf_config: dict,
    config: DecoderConfig,
    base_name: str,
    revision: str | None = None,
    dtype: str = "float32",
) -> tuple[dict, dict[str, PendingTensor]]:
    """(adapter_config.json, tensors of adapter_model.safetensors by name) that `peft` loads as the same function.

    Tensors are fetched and cast when their turn comes.

    Args:
        adapters: what is trained and its constants (`a` [in, rank], `b` [rank, out], …) at the paths of the weights
            they are beside, in either layout; without their collection.
        settings: method, alpha, scaling, dropout.
        hf_config: names the family.
        config: the decoder they adapt.
        base_name: of the base model, from which `peft` loads it: a directory or a hub name.
        revision: of a hub name.
        dtype: dtype of the tensors.

    Raises:
        ValueError: adapters that `peft` has no words for (DoRA beside a part of a stored layer, experts of unlike
            ranks), or beside no weight of this model; all are named.
    """
    flat = flatten_dict(adapters, sep="/")
    found = {path.rpartition("/")[0] for path in flat}
    modules = [_Adapted(module, parts) for module, parts in _beside(found, adapters, hf_config, config)]
    _check(modules, settings, found, adapters, config)
    stored, tensors, fields = np.dtype(jnp.dtype(dtype)), {}, {}
    fetch = functools.partial(_fetch, flat, adapters, config, settings.method)
    for adapted in modules:
        module = adapted.module
        ranks = [_rank(flat, adapters, rule, config, settings.method) for rule in adapted.rules]
        trained = [rank // (2 if settings.method == "pissa" else 1) for rank in ranks]
        alpha = settings.alpha * (sum(ranks) / trained[0]) ** settings.power
        factors = [(trained[0] / rank) ** settings.power for rank in trained]
        fields[module.target] = (sum(ranks), alpha)
        tied = module.embedding and config.tie_embeddings
        if tied:
            fields[HEAD] = fields[module.target]
        made = _tensors(module, adapted.rules, ranks, factors, fetch, settings.method == "dora", tied)
        tensors |= {PREFIX + name: _pending(shape, stored, make) for name, (shape, make) in made.items()}
    return _config(fields, modules, settings, config, base_name, revision), tensors


@dataclasses.dataclass(frozen=True)
class _Adapted:
    module: PeftModule
    rules: tuple[TensorRule, ...]  # those that have an adapter

    @property
    def whole(self) -> bool:
        return len(self.rules) == len(self.module.rules)


def _beside(found, adapters, hf_config, config):
    for module in peft_modules(hf_config, config).values():
        rules = tuple(rule for rule in module.rules if _path(adapters, rule, config)[0] in found)
        if rules:
            yield module, rules


def _path(adapters: Tree, rule: TensorRule, config: DecoderConfig) -> tuple[str, tuple[int, ...]]:
    """(path of an adapter in the tree, index of its layer and expert in the arrays there)."""
    path, place = place_of(rule, layout_of(adapters) or "unrolled", config.num_layers)
    return path.removesuffix("/kernel"), tuple(number for number, _ in place)


def _fetch(flat: dict, adapters: Tree, config: DecoderConfig, method: str, rule: TensorRule, name: str) -> np.ndarray:
    """An array of an adapter (`a`, `b`, `magnitude`) as plain LoRA or DoRA has it, float32."""
    path, index = _path(adapters, rule, config)
    array = np.asarray(flat[f"{path}/{name}"][index], np.float32)
    if method != "pissa":
        return array
    constant = np.asarray(flat[f"{path}/constant_{name}"][index], np.float32)
    return np.concatenate([array, constant], -1) if name == "a" else np.concatenate([array, -constant], -2)


def _rank(flat: dict, adapters: Tree, rule: TensorRule, config: DecoderConfig, method: str) -> int:
    return flat[_path(adapters, rule, config)[0] + "/a"].shape[-1] * (2 if method == "pissa" else 1)


def _tensors(module, rules, ranks, factors, fetch, dora, tied) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Name -> (shape, makes it) of the tensors of one module."""
    total = sum(ranks)

    def a() -> np.ndarray:
        return np.concatenate([fetch(rule, "a").T for rule in rules])

    def b() -> np.ndarray:
        array, start = np.zeros((module.fan_out, total), np.float32), 0
        for rule, rank, factor in zip(rules, ranks, factors, strict=True):
            ours = fetch(rule, "b")
            write_part(rule, ours if factor == 1 else ours * np.float32(factor), array[:, start : start + rank])
            start += rank
        return array

    def magnitude() -> np.ndarray:
        array = np.zeros((module.fan_out, 1), np.float32)
        for rule in rules:
            write_part(rule, fetch(rule, "magnitude")[None], array)
        return array[:, 0]

    names = ("lora_embedding_A", "lora_embedding_B") if module.embedding else ("lora_A.weight", "lora_B.weight")
    made = {
        f"{module.name}.{names[0]}": ((total, module.fan_in), a),
        f"{module.name}.{names[1]}": ((module.fan_out, total), b),
    }
    if dora:
        made[f"{module.name}.lora_magnitude_vector"] = ((module.fan_out,), magnitude)
    if tied:  # the head reads the same numbers the other way round
        made[f"{HEAD}.lora_A.weight"] = ((total, module.fan_out), lambda: b().T)
        made[f"{HEAD}.lora_B.weight"] = ((module.fan_in, total), lambda: a().T)
    return made


def _pending(shape: tuple[int, ...], dtype: np.dtype, make: Any) -> PendingTensor:
    return PendingTensor(shape, dtype, lambda: np.ascontiguousarray(make().astype(dtype)))


def _check(modules, settings, found, adapters, config) -> None:
    """What cannot be written, raised together."""
    known = {_path(adapters, rule, config)[0] for adapted in modules for rule in adapted.rules}
    problems = [f"{path}: this model family has no such weight" for path in sorted(found - known)]
    if not modules:
        problems.append("there is no adapter")
    if settings.method == "dora":
        for adapted in modules:
            if not adapted.whole:
                there = ", ".join(weight_path(rule) for rule in adapted.rules)
                problems.append(
                    f"{adapted.module.name} is one layer in peft, with magnitudes of all its outputs, and DoRA is on "
                    f"{there} alone"
                )
    experts = {a.module.target for a in modules if a.rules[0].part is not None}
    leaves = flatten_dict(adapters, sep="/")
    kinds = {path.rpartition("/")[2] for path in found if "/experts/" in path and not path.endswith("router")}
    sizes = {
        leaf.shape[-1]
        for path, leaf in leaves.items()
        if "/experts/" in path and path.endswith(("gate/a", "up/a", "down/a"))
    }
    if experts and ("gate" in kinds) != ("up" in kinds):
        problems.append("experts: peft has gate and up in one layer; only one of them has adapters")
    if experts and len(sizes) > 1:
        problems.append(f"experts: peft has one rank for all their layers; there are {sorted(sizes)}")
    if problems:
        raise ValueError("as a PEFT adapter this cannot be written; --format=merged can:\n  " + "\n  ".join(problems))


def _config(fields, modules, settings, config, base_name, revision) -> dict:
    """What `peft` itself writes; the rank and alpha of most modules, and patterns for the others."""
    targets = list(dict.fromkeys(adapted.module.target for adapted in modules))
    of_experts = [fields[a.module.target] for a in modules if a.rules[0].part is not None]
    rank, alpha = (of_experts or [collections.Counter(fields.values()).most_common(1)[0][0]])[0]
    tied = config.tie_embeddings and any(adapted.module.embedding for adapted in modules)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "revision": revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _number(alpha),
        # peft knows no dropout on experts
        "lora_dropout": 0.0 if of_experts else settings.dropout,
        "target_modules": targets,
        "rank_pattern": {re.escape(target): r for target, (r, _) in fields.items() if r != rank},
        "alpha_pattern": {re.escape(target): _number(a) for target, (_, a) in fields.items() if a != alpha},
        "use_rslora": settings.rslora,
        "use_dora": settings.method == "dora",
        "init_lora_weights": True,
        "bias": "none",
        "fan_in_fan_out": any(rule.turned for adapted in modules for rule in adapted.rules),
        "ensure_weight_tying": tied,
        "modules_to_save": None,
    }


def _number(value: float) -> int | float:
    return int(value) if value == int(value) else float(value)


def settings_of(adapter_config: Mapping[str, Any]) -> AdapterSettings:
    """Of `config.adapter` of an experiment config."""
    return AdapterSettings(
        method=adapter_config["method"],
        alpha=float(adapter_config["alpha"]),
        rslora=adapter_config["scaling"] == "sqrt_rank",
        dropout=float(adapter_config["dropout"]),
    )
