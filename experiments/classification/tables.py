"""The tables of what was found: scores by method, what was taken for what, scores by group."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.scores import Score, group_scores, score_table
from sft_jax.evaluation.figures import metric_name
from sft_jax.evaluation.report.tables import TextTable

WRITTEN, CHOSEN = KINDS = ("generate", "choose")  # kinds of the task, as the command calls them
WORDS = {WRITTEN: "written", CHOSEN: "chosen"}

Tasks = Mapping[int, Mapping[str, Mapping[str, Any]]]  # by examples a class and kind: what the evaluation found


def method_name(method: str, size: int) -> str:
    """As the tables call a method."""
    return {"base": "base", "few_shot": f"few-shot of {size} a class", "sft": f"SFT on {size} a class"}[method]


def score_lines(tasks: Tasks) -> dict[str, dict[str, Score]]:
    """By method: accuracy and macro-F1 of both kinds."""
    lines: dict[str, dict[str, Score]] = {}
    for size, by_kind in tasks.items():
        for kind, task in by_kind.items():
            for method, scores in task["scores"].items():
                line = lines.setdefault(method_name(method, size), {})
                metrics = ("accuracy", "macro_f1")
                line |= {f"{metric_name(metric)}, {WORDS[kind]}": scores[metric] for metric in metrics}
    return lines


def confusions(task: Mapping[str, Any], method: str, title: str, most: int = 10) -> TextTable:
    """The most frequent mistakes: which class was taken for which."""
    found = task["details"][method]["confusion"]
    predicted = found["columns"][1:]
    counts = [
        (count, expected, answered)
        for expected, *of_class in found["rows"]
        for answered, count in zip(predicted, of_class, strict=True)
        if count and answered != expected
    ]
    rows = sorted(counts, key=lambda one: (-one[0], one[1:]))[:most]
    cells = tuple((expected, answered, str(count)) for count, expected, answered in rows)
    return TextTable(title, ("class", "answered", "rows"), cells)


def by_group(tasks: Mapping[str, Mapping[str, Any]], method: str, title: str) -> TextTable:
    """Accuracy of a method in each group and the gap between the best and the worst, by kind; empty without groups."""
    lines: dict[str, dict[str, Score]] = {}
    for kind, task in tasks.items():
        for group, score in group_scores(task, method, "accuracy").items():
            lines.setdefault(group, {})[f"accuracy, {WORDS[kind]}"] = score
    return score_table(lines, title, first="group")


def tables_of(tasks: Tasks) -> Sequence[TextTable]:
    """All tables, the details being those of the run with most examples."""
    size = max(tasks)
    words = method_name("sft", size)
    details = [confusions(tasks[size][kind], "sft", f"Mistakes, {WORDS[kind]}, {words}") for kind in KINDS]
    return [score_table(score_lines(tasks)), *details, by_group(tasks[size], "sft", f"By group, {words}")]
