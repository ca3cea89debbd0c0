"""Values of a config that objectives of answers exclude, and options that an objective does not read."""

from collections.abc import Mapping
from typing import Any

from sft_jax.models.variables import SCORE
from sft_jax.objectives import distils, has_reference, judges_answers, reads_of, samples_groups, scores_texts
from sft_jax.options import Options
from sft_jax.training.optimizer import POLICY_NUMBERS


def problems_of_pairs(options: Options) -> list[str]:
    """What answers that were judged exclude."""
    objective, masking, name = options.objective, options.data.masking, options.objective.name
    if not judges_answers(name):
        return []
    needs = (
        (name != "orpo" or objective.sft_weight > 0, "sft_weight", "ORPO adds its term to that loss; give 1.0"),
        (name != "dpo_robust" or 0 < objective.label_smoothing < 0.5, "label_smoothing", "must lie between 0 and 0.5"),
        (objective.label_smoothing < 0.5, "label_smoothing", "must be below 0.5: labels are right more often than not"),
        (
            not (objective.per_token and objective.tail_weight != 1),
            "tail_weight",
            "means over tokens have none; give 1",
        ),
    )
    problems = [
        f"--config.objective.{field}={getattr(objective, field)!r}: {what} (--config.objective.name={name})"
        for is_good, field, what in needs
        if not is_good
    ]
    for field, allowed in (("train_on", ("assistant", "last")), ("end_of_turn", ("turn", "last", "none"))):
        if (value := getattr(masking, field)) not in allowed:
            problems.append(
                f"--config.data.masking.{field}={value!r}: of a pair its answers are trained and nothing else, and so "
                f"is an answer with a label; give {' or '.join(allowed)}"
            )
    if masking.too_long not in ("drop", "error"):
        problems.append(
            f"--config.data.masking.too_long={masking.too_long!r}: answers that are judged are never cut; give drop "
            "or error"
        )
    return problems + _of_reference(options)


def problems_of_scores(options: Options) -> list[str]:
    """What a decoder that scores excludes, and what needs one."""
    name, head, problems = options.objective.name, options.model.head, []
    if scores_texts(name) != (head == SCORE):
        wanted = SCORE if scores_texts(name) else "vocabulary"
        problems.append(
            f"--config.model.head={head}: --config.objective.name={name} is of the other head; give "
            f"--config.model.head={wanted} (--config=configs/reward_model.py has both)"
        )
    if head != SCORE:
        return problems
    asked = {
        "evaluation.samples": (options.evaluation.samples, "0"),
        "evaluation.tasks": (", ".join(options.evaluation.tasks), "none"),
    }
    return problems + [
        f"--config.{field}={value!r}: a reward model scores texts and writes none; give {advised}"
        for field, (value, advised) in asked.items()
        if value
    ]


def _of_reference(options: Options) -> list[str]:
    """What makes a policy differ from the reference that it begins as."""
    if not has_reference(options.objective.name):
        return []
    found = {
        "adapter.dropout": options.adapter.dropout,
        "objective.neftune_alpha": options.objective.neftune_alpha,
        "experts.capacity": options.experts.capacity,
    }
    return [
        f"--config.{name}={value!r}: --config.objective.name={options.objective.name} compares what is trained with "
        "what it began as, which this would change before the first step; give 0"
        for name, value in found.items()
        if value
    ]


def unread_objective_options(options: Options, defaults: Mapping[str, Any]) -> list[str]:
    """Options that only other objectives read, and that were asked for."""
    name = options.objective.name
    read = {"normalize", "label_smoothing", "z_loss", "kl_to_base", "positions"}
    if judges_answers(name):
        read = {*reads_of(name)}
    if samples_groups(name):
        read = {"normalize", *POLICY_NUMBERS}
    if distils(name):
        read = {"normalize", "positions", *reads_of(name)}
    asked = {f"objective.{option}": value for option, value in vars(options.objective).items() if option not in read}
    return [
        f"--config.{field}={value!r} is not read by --config.objective.name={name}; leave it at {defaults[field]!r}"
        for field, value in asked.items()
        if field in defaults and value != defaults[field]
    ]
