"""Reads the config in a run directory, which code with other fields may have written.

Missing fields get no default: only whoever trained knows what the code did before they existed.
"""

import functools
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from etils import epath

from sft_jax.runs.workdir import CONFIG, ENVIRONMENT, config_there, flatten

# Beside this package, by its path: a project that uses the package may have a `configs` of its own.
_DEFAULT = Path(__file__).resolve().parents[2] / "configs" / "sft.py"
# What the weights are: here a field that nobody reads any more was read by what trained them.
_SECTIONS = ("model", "adapter", "trained", "ema", "precision")
# What else is needed to use a result. All other fields are of training alone.
_READ = ("seed", "data.train", "data.held_out", "experts.balance_loss", "objective.neftune_alpha", "optimizer.")


def read_config(directory: epath.Path) -> ml_collections.ConfigDict:
    """The config of a run, with every field that is needed to use its result.

    Raises:
        ValueError: it lacks some, or has some that the code does not know; names the file and all of them.
    """
    there = config_there(directory)
    known = known_fields()
    problems = [*_missing(there, known), *_unknown(there)]
    if problems:
        raise ValueError(f"{directory / CONFIG}: " + "\n".join(problems))
    return ml_collections.ConfigDict(there, convert_dict=True)


@functools.cache
def known_fields() -> Mapping[str, Any]:
    """The fields of configs/sft.py by their path, with their values."""
    spec = importlib.util.spec_from_file_location("sft_jax_default_config", _DEFAULT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return flatten(module.get_config().to_dict())


def unknown_fields(config: Mapping[str, Any]) -> list[str]:
    """Fields for which the result of a run would be refused: in sections that say what weights are, nobody knows them.

    A field that was read when the weights were trained, and is not any more, would otherwise be left out in silence.
    """
    return [name for name in flatten(config) if name.partition(".")[0] in _SECTIONS and name not in known_fields()]


def _missing(there: dict[str, Any], known: Mapping[str, Any]) -> list[str]:
    found = flatten(there)
    lacking = [name for name in known if _is_read(name) and name not in found]
    if not lacking:
        return []
    return [
        f"the run has no {', '.join(lacking)}: made before there were such fields, or damaged. In configs/sft.py they "
        f"are{_listed(lacking, known)}\nAdd each by hand, with the value that is what the code of then did (its commit "
        f"is in {ENVIRONMENT})."
    ]


def _unknown(there: dict[str, Any]) -> list[str]:
    unknown, found = unknown_fields(there), flatten(there)
    if not unknown:
        return []
    return [
        f"the run has fields that are not, or no longer, in configs/sft.py:{_listed(unknown, found)}\nRemove each by "
        "hand if at this value it changes nothing of the result; else use the code that read it (its commit is in "
        f"{ENVIRONMENT}), or give configs/sft.py the field."
    ]


def _is_read(name: str) -> bool:
    return name.startswith(_READ) or name.partition(".")[0] in _SECTIONS


def _listed(names: Sequence[str], values: Mapping[str, Any]) -> str:
    return "".join(f"\n  {name}: {json.dumps(values[name])}" for name in names)
