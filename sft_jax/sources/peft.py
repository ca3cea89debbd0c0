"""Reads PEFT adapter directories: adapter_config.json and adapter_model.safetensors, as the `peft` library writes them.

A field of the config is implemented, known to have no effect on a trained adapter, or refused: ignoring one could
silently change what the adapter computes. See https://huggingface.co/docs/peft/developer_guides/checkpoint.
"""

import dataclasses
import math
import os
import re
import reprlib
from collections.abc import Mapping
from typing import Any

from etils import epath

from sft_jax.sources.fingerprint import fingerprint_files
from sft_jax.sources.huggingface import read_json, read_safetensors
from sft_jax.sources.tensors import SourceError, TensorEntry, is_whole

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."

# They say how the adapter was made or is to be run, not what it computes.
_WITHOUT_EFFECT = (
    "auto_mapping",
    "corda_config",  # beginnings; those that change the base model are refused by init_lora_weights
    "eva_config",
    "exclude_modules",  # the tensors say which modules have adapters
    "fan_in_fan_out",  # how the base model's layer is stored; its family's table knows
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",  # of use_qalora
    "runtime_config",
    "task_type",
)
_UNDERSTOOD = (
    "alpha_pattern",
    "base_model_name_or_path",
    "bias",
    "ensure_weight_tying",
    "init_lora_weights",
    "lora_alpha",
    "lora_dropout",
    "peft_type",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "target_parameters",
    "use_dora",
    "use_rslora",
)
# Beginnings that leave the base model as it is. The others take a part out of it: PiSSA, OLoRA, CorDA, LoRA-GA, LoftQ.
_INNOCENT_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")
_ABSENT = (None, False, [], {}, "")


@dataclasses.dataclass(frozen=True)
class PeftAdapter:
    """An adapter directory, described but not loaded.

    Attributes:
      location: the directory.
      base: the base model as `peft` recorded it (a path or a hub name); empty where it did not.
      revision: of a base on the hub; None is its newest.
      rank: of modules without a pattern.
      alpha: likewise; the update is scaled by alpha / rank, or by alpha / sqrt(rank) with `rslora`.
      rslora: see `alpha`.
      dora: columns have magnitudes.
      dropout: of the inputs, in training.
      ties: an adapter of the embedding is one of the head too, where both are one weight.
      rank_pattern: regular expression over module names -> rank.
      alpha_pattern: regular expression over module names -> alpha.
      parameters: ends of the names of parameters that are adapted by themselves (`mlp.experts.down_proj`).
      tensors: name as in the file, without its prefix `base_model.model.` -> entry.
      fingerprint: sha256 (hex) of sizes and samples of both files.
    """

    location: str
    base: str
    revision: str | None
    rank: int
    alpha: float
    rslora: bool
    dora: bool
    dropout: float
    ties: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    parameters: tuple[str, ...]
    tensors: Mapping[str, TensorEntry]
    fingerprint: str

    def rank_of(self, module: str) -> int:
        """The rank of a module (`model.layers.0.self_attn.q_proj`): of the first pattern that its name ends with."""
        return _by_pattern(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """The factor of a module's update."""
        alpha, rank = _by_pattern(self.alpha_pattern, module, self.alpha), self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def targets_parameter(self, name: str) -> bool:
        """Whether a parameter (`model.layers.0.mlp.experts.down_proj`) is adapted by itself."""
        return any(f".{name}".endswith(f".{target}") for target in self.parameters)


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """As `peft.utils.other.get_pattern_key` finds it."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def is_peft_directory(source: str | os.PathLike) -> bool:
    """Whether `source` is a directory with an adapter and no model of its own."""
    if os.fspath(source).startswith("random:"):
        return False
    path = epath.Path(source)
    return (path / CONFIG).exists() and not (path / "config.json").exists()


def open_peft_adapter(source: str | os.PathLike) -> PeftAdapter:
    """Opens an adapter directory (local or in a bucket); reads the config and the header of the weights, no tensor.

    Raises:
      SourceError: a file is missing or damaged, or the config asks for what is not implemented; names file, field,
        value and what is possible. All such fields are named at once.
    """
    directory = epath.Path(source)
    path, weights = directory / CONFIG, directory / WEIGHTS
    if not path.exists():
        raise SourceError(f"{directory} has no {CONFIG}; expected the directory of a PEFT adapter.")
    config = read_json(path)
    problems = list(_problems(config))
    if problems:
        raise SourceError("\n  ".join([f"{path} is not read as it is:", *problems]))
    if not weights.exists():
        pickled = (directory / "adapter_model.bin").exists()
        why = "It holds pickled weights: save it with safetensors." if pickled else "Copy or download it too."
        raise SourceError(f"{weights} is missing. {why}")
    return PeftAdapter(
        location=os.fspath(directory),
        base=config.get("base_model_name_or_path") or "",
        revision=config.get("revision"),
        rank=config["r"],
        alpha=float(config["lora_alpha"]),
        rslora=bool(config.get("use_rslora")),
        dora=bool(config.get("use_dora")),
        dropout=float(config.get("lora_dropout") or 0.0),
        ties=bool(config.get("ensure_weight_tying")),
        rank_pattern=config.get("rank_pattern") or {},
        alpha_pattern=config.get("alpha_pattern") or {},
        parameters=tuple(config.get("target_parameters") or ()),
        tensors=_checked_tensors(weights, config),
        fingerprint=fingerprint_files([path, weights]),
    )


def _checked_tensors(path: epath.Path, config: dict) -> dict[str, TensorEntry]:
    """The tensors without their prefix, of modules that the config targets."""
    found = read_safetensors(path)
    foreign = [name for name in found if not name.startswith(PREFIX)]
    if foreign:
        raise SourceError(f"{path}: holds {reprlib.repr(foreign)}; expected names that begin with {PREFIX!r}.")
    tensors = {name.removeprefix(PREFIX): entry for name, entry in found.items()}
    astray = [name for name in tensors if not _is_targeted(name, config)]
    if astray:
        raise SourceError(
            f"{path}: holds {reprlib.repr(astray)}, which peft would leave aside: no entry of target_modules in "
            f"{CONFIG} ({reprlib.repr(config.get('target_modules'))}) names their module. Save the adapter again."
        )
    if not tensors:
        raise SourceError(f"{path}: holds no tensor. Save the adapter again.")
    return tensors


def _is_targeted(tensor: str, config: dict) -> bool:
    """Whether `peft` would give the module of a tensor an adapter."""
    targets, parameters = config.get("target_modules"), config.get("target_parameters") or ()
    module = re.split(r"\.(?:lora_|base_layer\.)", tensor, maxsplit=1)[0]
    if any(f".{module}.".endswith(f".{target.rpartition('.')[0]}.") for target in parameters):
        return True
    if config.get("ensure_weight_tying") and module.rpartition(".")[2] in ("lm_head", "embed_out"):
        return True  # it comes with the embedding
    if targets == "all-linear":
        return True
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets or ())


def _problems(config: dict) -> list[str]:
    """What is wrong with the fields of a config, a line each."""
    found = []

    def expect(key: str, expected: str, accepts: bool) -> None:
        if not accepts:
            found.append(f"{key}={reprlib.repr(config.get(key))}; expected {expected}")

    kind = config.get("peft_type")
    expect("peft_type", "'LORA', the only kind implemented", kind == "LORA")
    if kind != "LORA":
        return found  # the other kinds have fields of their own
    expect("r", "a whole number from 1", is_whole(config.get("r"), 1, 2**20))
    expect("lora_alpha", "a positive number", _is_positive(config.get("lora_alpha")))
    expect("lora_dropout", "a number in [0, 1)", _is_share(config.get("lora_dropout") or 0.0))
    expect("bias", "'none': trained biases are not implemented", config.get("bias", "none") == "none")
    for key in ("use_rslora", "use_dora", "ensure_weight_tying"):
        expect(key, "true or false", config.get(key) in (True, False, None))
    for key in ("base_model_name_or_path", "revision"):
        expect(key, "a name", isinstance(config.get(key), str | None))
    expect("target_modules", "a list of names, or a pattern", _is_targets(config.get("target_modules")))
    expect("target_parameters", "a list of names", _is_names(config.get("target_parameters") or []))
    for key, accepts in (("rank_pattern", lambda rank: is_whole(rank, 1, 2**20)), ("alpha_pattern", _is_positive)):
        expect(key, "an object of patterns and positive numbers", _is_patterns(config.get(key) or {}, accepts))
    found += _beginning(config.get("init_lora_weights", True))
    known = {*_WITHOUT_EFFECT, *_UNDERSTOOD}
    left = {key: value for key, value in config.items() if key not in known and value not in _ABSENT}
    found += [f"{key}={reprlib.repr(value)} is not implemented; expected none" for key, value in sorted(left.items())]
    return found


def _beginning(value: Any) -> list[str]:
    if value in _INNOCENT_BEGINNINGS:
        return []
    if isinstance(value, str) and value.startswith(("pissa", "olora", "corda", "lora_ga")):
        return [
            f"init_lora_weights={value!r}: it was saved as it was trained, and belongs to a base model that lacks what "
            "the adapter began with. Save it as plain LoRA: "
            "save_pretrained(…, path_initial_model_for_weight_conversion=…)"
        ]
    return [f"init_lora_weights={reprlib.repr(value)} is not implemented; expected one of {_INNOCENT_BEGINNINGS}"]


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_targets(value: Any) -> bool:
    return value is None or _is_names(value) or (isinstance(value, str) and _is_pattern(value))


def _is_patterns(value: Any, accepts: Any) -> bool:
    return isinstance(value, dict) and all(_is_pattern(key) and accepts(number) for key, number in value.items())


def _is_pattern(value: str) -> bool:
    try:
        re.compile(value)
    except re.error:
        return False
    return True
