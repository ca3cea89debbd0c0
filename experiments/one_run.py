"""One run, and one evaluation of it: all methods side by side on held-out rows, which is what many questions need."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.commands import Commands
from experiments.scores import read_task

EVALUATION = "evaluation"


def compare_methods(
    out: Path, methods: Sequence[str], changes: Mapping[str, object], given: Mapping[str, object], command: Commands
) -> dict[str, Any]:
    """Trains what is missing of the run, and measures it.

    Args:
        out: directory of the experiment, for `run` and `evaluation`.
        methods: of the evaluation.
        changes: of the run's config, by path.
        given: flags of the evaluation, by name.
        command: how they are run.

    Returns:
        What was found of the task.
    """
    command.console.rule("fine-tuning")
    command.train(out / "run", changes)
    command.console.rule("held-out rows")
    command.evaluate(out / EVALUATION, {"model": out / "run", "methods": ",".join(methods), **given})
    command.console.rule("all methods")
    return read_task(out / EVALUATION)
