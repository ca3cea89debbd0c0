"""Values of a config that sampling its own answers excludes, and options of it that nothing would read."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import ml_collections

from sft_jax.evaluation.scorers import make_scorer
from sft_jax.objectives import samples_groups
from sft_jax.options import Options, RewardOptions

FLAG = "--config.rollouts.rewards"


def malformed_rewards(config: ml_collections.ConfigDict) -> list[str]:
    """Entries of which no options can be made; each problem names its flag."""
    fields, rewards = {field.name for field in dataclasses.fields(RewardOptions)}, config.rollouts.rewards
    return [
        f"{FLAG}.{name} must be what reward(scorer, weight=…) of configs/sft.py makes"
        for name, entry in rewards.items()
        if not isinstance(entry, ml_collections.ConfigDict) or set(entry) != fields
    ]


def problems_of_rollouts(options: Options) -> list[str]:
    """What an objective of sampled answers needs and excludes."""
    objective, masking = options.objective, options.data.masking
    if not samples_groups(objective.name):
        if objective.normalize != "constant":
            return []
        return [
            f"--config.objective.normalize='constant' is not read by --config.objective.name={objective.name}, but of "
            "sampled answers (docs/rlvr.md); give tokens or examples"
        ]
    problems = [problem for name, reward in options.rollouts.rewards.items() for problem in _of_reward(name, reward)]
    if not options.rollouts.rewards and not objective.teacher_weight:
        problems.append(
            f"{FLAG} is empty: answers are worth nothing. Give config.rollouts.rewards.answer = "
            'reward("exact_match") in the config file (docs/rlvr.md)'
        )
    if options.rollouts.rewards and options.rollouts.group == 1:
        problems.append(
            "--config.rollouts.group=1: the reward of an answer is compared with those of others to its prompt; give 2 "
            "or more"
        )
    if options.rollouts.max_new_tokens >= options.data.sequence_length:
        problems.append(
            f"--config.rollouts.max_new_tokens={options.rollouts.max_new_tokens} leaves no room for a prompt in "
            f"--config.data.sequence_length={options.data.sequence_length}; give a longer sequence"
        )
    for field, allowed in (("train_on", ("last",)), ("history", ("refuse",)), ("too_long", ("drop", "error"))):
        if (value := getattr(masking, field)) not in allowed:
            problems.append(
                f"--config.data.masking.{field}={value!r}: the last answer of a row is the reference of those that are "
                f"sampled, and all before it their prompt; give {' or '.join(allowed)}"
            )
    return problems + _weighted_rows(options) + _unlike_the_sampler(options)


def _of_reward(name: str, reward: RewardOptions) -> list[str]:
    problems = []
    if not (math.isfinite(reward.weight) and reward.weight):
        problems.append(f"{FLAG}.{name}.weight={reward.weight} must be a finite number that is not 0")
    try:
        make_scorer(reward.scorer, reward.scorer_options)
    except ValueError as error:
        problems.append(f"{FLAG}.{name}: {error}")
    return problems


def _weighted_rows(options: Options) -> list[str]:
    readings = {"": options.data.reading} | {name: source.reading for name, source in options.data.mixture.items()}
    return [
        f"--config.data.{f'mixture.{name}.' if name else ''}reading.weight_column={reading.weight_column!r} is not "
        "read where answers are sampled: each prompt counts the same; leave it empty"
        for name, reading in readings.items()
        if reading.weight_column
    ]


def _unlike_the_sampler(options: Options) -> list[str]:
    """What gives tokens another log-probability in training than when they were drawn."""
    found = {
        "adapter.dropout": options.adapter.dropout,
        "objective.neftune_alpha": options.objective.neftune_alpha,
        "experts.capacity": options.experts.capacity,
    }
    return [
        f"--config.{name}={value!r}: --config.objective.name={options.objective.name} compares each token's "
        "probability with that when it was drawn, which this would change; give 0"
        for name, value in found.items()
        if value
    ]


def unread_rollout_options(options: Options, defaults: Mapping[str, Any]) -> list[str]:
    """Options of sampled answers that were asked for, and an objective without any."""
    name = options.objective.name
    if samples_groups(name):
        return []
    asked = {f"rollouts.{option}": value for option, value in vars(options.rollouts).items()}
    problems = [
        f"--config.{field}={value!r} is not read by --config.objective.name={name}; leave it at "
        f"{defaults[field]!r}, or give --config=configs/rlvr.py"
        for field, value in asked.items()
        if field in defaults and value != defaults[field]
    ]
    problems += [f"{FLAG}.{entry} is not read by --config.objective.name={name}" for entry in options.rollouts.rewards]
    return problems
