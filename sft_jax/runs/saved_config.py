"""The config that a run directory keeps: what put it there may have known other fields than the code that reads it.

A field that is missing has no default here: only who trained knows what the code did before it existed.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from etils import epath

from configs import sft
from sft_jax.runs.workdir import CONFIG, ENVIRONMENT, config_there, flatten

# What the weights are: here a field that nobody reads any more was read by what trained them.
_SECTIONS = ("model", "adapter", "trained", "ema", "precision")
# What says how a result is put to use, beside the sections above. All other fields are of training alone.
_READ = ("seed", "data.train", "data.held_out", "experts.balance_loss", "objective.neftune_alpha", "optimizer.")
# Without effect where the run is only put to use, though in one of the sections.
_OF_TRAINING = {"precision.products", "precision.activations", "ema.evaluate", "adapter.initial"}
# A run of before this choice has none: to it new tokens were text in contents, see vocabulary.py.
_MAY_LACK = {"model.new_tokens_in_contents"}


def read_config(directory: epath.Path) -> ml_collections.ConfigDict:
    """The config of a run, with every field that putting its result to use reads.

    Raises:
        ValueError: it lacks some, or has some that the code does not know; names the file and all of them.
    """
    there = config_there(directory)
    known = flatten(sft.get_config().to_dict())
    problems = [*_missing(there, known), *_unknown(there, known)]
    if problems:
        raise ValueError(f"{directory / CONFIG}: " + "\n".join(problems))
    return ml_collections.ConfigDict(there, convert_dict=True)


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


def _unknown(there: dict[str, Any], known: Mapping[str, Any]) -> list[str]:
    found = flatten(there)
    unknown = [name for name in found if name.partition(".")[0] in _SECTIONS and name not in known]
    if not unknown:
        return []
    return [
        f"the run has fields that are not, or no longer, in configs/sft.py:{_listed(unknown, found)}\nRemove each by "
        "hand if at this value it changes nothing of the result; else use the code that read it (its commit is in "
        f"{ENVIRONMENT}), or give configs/sft.py the field."
    ]


def _is_read(name: str) -> bool:
    return name.startswith(_READ) or (
        name.partition(".")[0] in _SECTIONS and name not in _OF_TRAINING and name not in _MAY_LACK
    )


def _listed(names: Sequence[str], values: Mapping[str, Any]) -> str:
    return "".join(f"\n  {name}: {json.dumps(values[name])}" for name in names)
