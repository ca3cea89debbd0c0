"""Which fields of configs may differ between runs that train in one program, and the settings that all of them share.

What may differ is data of the step (seed, numbers of optimizer and schedule, of objective and adapter), the rows and
their order, or what only the host looks at (when to evaluate and save). All else would be another program, or other
arrays.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from ml_collections import ConfigDict

from sft_jax.objectives import distils, judges_answers, samples_groups
from sft_jax.options import Options, options_of
from sft_jax.runs.workdir import flatten, is_under
from sft_jax.training.groups import parse_groups
from sft_jax.training.optimizer import optimizer_settings
from sft_jax.training.update_rules import RULES

Run = TypeVar("Run")

# Fields and sections that may differ.
MAY_DIFFER = (
    "seed",
    "duration",
    "data",
    "objective.normalize",
    "objective.label_smoothing",
    "objective.z_loss",
    "objective.neftune_alpha",
    "objective.kl_to_base",
    "experts.balance_loss",
    "adapter.rank",
    "adapter.ranks",
    "adapter.alpha",
    "adapter.scaling",
    "adapter.dropout",
    "optimizer.learning_rate",
    "optimizer.warmup",
    "optimizer.final_share",
    "optimizer.decay",
    "optimizer.decay_shape",
    "optimizer.betas",
    "optimizer.epsilon",
    "optimizer.momentum",
    "optimizer.decay_power",
    "optimizer.weight_decay",
    "optimizer.groups",
    "optimizer.clip_norm",
    "optimizer.max_skipped_in_a_row",
    "ema",
    "evaluation",
    "checkpoint",
    "log",
    "loader",
    "defaults",
)
# Within them, what sets the shape of a batch.
_ONE_SHAPE = ("data.sequence_length",)
# At 0 a run has less in its program, its state or its log: either all are 0, or none is.
_ALL_OR_NONE = ("objective.kl_to_base", "experts.balance_loss", "ema.decay")
_RANKS = ("adapter.rank", "adapter.ranks")


class NotStackableError(ValueError):
    """Runs that cannot train in one program."""


def refuse_what_cannot_be_stacked(configs: Sequence[ConfigDict]) -> None:
    """Checks, by their configs alone, that runs can train in one program.

    Raises:
        NotStackableError: they differ in what cannot be a batch axis, or one of them is to be profiled; names the
            fields.
    """
    problems = _problems(configs)
    if problems:
        listed = "\n  ".join(problems)
        raise NotStackableError(
            f"these {len(configs)} runs cannot be trained in one program:\n  {listed}\nTrain them in groups that agree "
            "in these fields, or each by itself."
        )


def groups_of(runs: Iterable[Run], config_of: Any, largest: int) -> list[list[Run]]:
    """Runs in groups that can train in one program, in the order in which they are given.

    Args:
        runs: whatever has a config.
        config_of: gives the config of a run.
        largest: so many runs are in a group at most.
    """
    groups: list[list[Run]] = []
    for run in runs:
        fitting = (
            group
            for group in groups
            if len(group) < largest and not _problems([*map(config_of, group), config_of(run)])
        )
        group = next(fitting, None)
        if group is None:
            groups.append(group := [])
        group.append(run)
    return groups


def _problems(configs: Sequence[ConfigDict]) -> list[str]:
    """Why these runs cannot train in one program, a line each."""
    flat = [flatten(config.to_dict()) for config in configs]
    names = sorted(set().union(*flat))
    values = {name: [fields.get(name, "(absent)") for fields in flat] for name in names}
    differ = {name: found for name, found in values.items() if len(set(map(repr, found))) > 1}
    problems = _by_themselves(values["objective.name"])
    problems += [f"{_shown(name, found)} may not differ" for name, found in differ.items() if not may_differ(name)]
    problems += [
        f"{_shown(name, values[name])}: either all are 0, or none is"
        for name in _ALL_OR_NONE
        if name in differ and 0 in values[name]
    ]
    if problems:
        return problems
    if any(values["profile.start"]):
        problems.append(f"{_shown('profile.start', values['profile.start'])}: a run is profiled by itself; give 0")
    options = [options_of(config) for config in configs]
    if "optimizer.groups" in differ and len({_parts_of_groups(each) for each in options}) > 1:
        problems.append(
            f"{_shown('optimizer.groups', values['optimizer.groups'])}: only their numbers may differ, not patterns, "
            "and not which of them have a weight_decay"
        )
    rule = options[0].optimizer.name
    ranks = [name for name in _RANKS if name in differ]
    if ranks and not RULES[rule].by_element:
        problems += [
            f"{_shown(name, values[name])}: ranks may not differ under --config.optimizer.name={rule}, whose update of "
            "an entry depends on the shape of its matrix"
            for name in ranks
        ]
    return problems


def _by_themselves(names: Sequence[str]) -> list[str]:
    """Objectives whose runs share no program, whatever else they agree in."""
    kinds = {
        "learns from judged answers": judges_answers,
        "samples its answers": samples_groups,
        "has a teacher": distils,
    }
    return [
        f"{_shown('objective.name', found)}: a run that {what} is trained by itself"
        for what, is_one in kinds.items()
        if (found := [name for name in names if is_one(name)])
    ]


def may_differ(name: str) -> bool:
    """Whether a field, by its path, may differ between runs of one program."""
    return is_under(name, MAY_DIFFER) and name not in _ONE_SHAPE


def _parts_of_groups(options: Options) -> tuple:
    """What is static of `optimizer.groups`."""
    decays = tuple(group.weight_decay is None for group in parse_groups(options.optimizer.groups))
    return optimizer_settings(options.optimizer).groups, decays


def _shown(name: str, values: Sequence[Any]) -> str:
    """`--config.model.source: 'a', 'b'`."""
    found = dict.fromkeys(map(repr, values))
    return f"--config.{name}: {', '.join(found)}"


def options_of_all(runs: Sequence[Options]) -> Options:
    """The options whose program is that of all runs together.

    It draws dropout, adds noise and smooths labels if any of them does: at 0 that changes nothing. A step counts as
    many sequences as all have together: by that, execution is chosen, and the head is split into chunks.
    """
    first = runs[0]
    most = lambda section, name: max(getattr(getattr(run, section), name) for run in runs)
    objective = dataclasses.replace(
        first.objective,
        **{name: most("objective", name) for name in ("label_smoothing", "z_loss", "neftune_alpha")},
    )
    adapter = dataclasses.replace(first.adapter, dropout=most("adapter", "dropout"))
    batch = dataclasses.replace(first.batch, sequences=first.batch.sequences * len(runs))
    return dataclasses.replace(first, objective=objective, adapter=adapter, batch=batch)
