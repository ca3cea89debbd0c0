"""The scores of extraction, also by layout: those that were trained, and new ones."""

from collections.abc import Mapping
from typing import Any

from experiments.scores import Score, group_scores

EXACT = "exact_match"


def scores_of(task: Mapping[str, Any], method: str) -> dict[str, Score]:
    """The scores of a method that are shown: F1, exact match, and that by layout where the rows have layouts."""
    scores = task["scores"][method]
    by_layout = {f"exact match, {name} layouts": s for name, s in group_scores(task, method, EXACT).items()}
    by_layout.pop("exact match, gap layouts", None)
    return {metric: scores[metric] for metric in (task["primary"], EXACT)} | by_layout
