"""Values of a config that a teacher excludes, and options of it that nothing would read."""

from collections.abc import Mapping
from typing import Any

from sft_jax.objectives import distils
from sft_jax.options import Options
from sft_jax.training.teacher import needs_teacher


def problems_of_teacher(options: Options) -> list[str]:
    """What a run with a teacher excludes."""
    name, top_k = options.objective.name, options.teacher.top_k
    if distils(name) or not needs_teacher(options) or not top_k:
        return []
    return [
        f"--config.teacher.top_k={top_k}: the answers of a step are drawn in it, so that what a teacher thinks of them "
        "is not known before; give 0, by which it is in the step"
    ]


def unread_teacher_options(options: Options, defaults: Mapping[str, Any]) -> list[str]:
    """Options of a teacher that were asked for, and no teacher is."""
    if needs_teacher(options):
        return []
    asked = {f"teacher.{name}": value for name, value in vars(options.teacher).items()}
    return [
        f"--config.{field}={value!r} is not read by --config.objective.name={options.objective.name}; leave it at "
        f"{defaults[field]!r}, or give --config=configs/distillation.py"
        for field, value in asked.items()
        if value != defaults[field]
    ]
