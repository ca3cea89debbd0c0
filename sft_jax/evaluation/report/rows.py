"""The answers of all methods to a row side by side, as plain values that page.js draws.

    {"texts": [...], "methods": [{"name", "color"}], "tasks": [{"name", "metric", "note", "judges", "methods": [number
     of a method], "groups": [...], "rows": [{"id", "group", "reference", "prompt", "disagree", "answers": [{"answer",
     "prompt", "value", "right", "finish", "outcome"}]}]}]}

A text is a number in `texts`, where each stands once: examples in a prompt are the same for every row. A prompt is a
list of [role, text].
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.audit.preview.selection import chosen
from sft_jax.evaluation.figures import metric_name
from sft_jax.evaluation.metrics import RATIOS, higher_is_better
from sft_jax.evaluation.report.plots import method_colors
from sft_jax.evaluation.scorers import Outcome

MAX_BYTES = 32_000_000  # of JSON on the page: what browsers still open in a second or so
_EQUAL = 1e-9

Rows = Sequence[Mapping[str, Any]]


class _Texts:
    """Texts by number, each once."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        return self.numbers.setdefault(text, len(self.numbers))

    def prompt(self, prompt: str | Sequence[Mapping[str, Any]]) -> list[list[Any]]:
        """A list of [role, number of the text]; a prompt that is one text has no role."""
        if isinstance(prompt, str):
            return [["", self.number(prompt)]]
        return [[message["role"], self.number(_content(message))] for message in prompt]


def page_rows(
    results: Mapping[str, Any], answers: Mapping[str, Mapping[str, Rows]], max_bytes: int = MAX_BYTES
) -> dict[str, Any]:
    """What the page shows of the answers.

    Args:
        results: of the package's form.
        answers: by task and method; tasks that measure forgetting may be among them.
        max_bytes: of JSON, for each task its share; where that is too little for all rows, those at even distances are
            shown, and a note of the task says so.

    Raises:
        ValueError: answers are of no task of the results, or the methods of a task do not have the same rows in the
            same order.
    """
    names, texts = list(results["methods"]), _Texts()
    colors = method_colors(names)
    described = {**(results["forgetting"] or {}), **results["tasks"]}
    tasks = []
    for task, methods in answers.items():
        _check_rows(task, methods)
        if task not in described:
            raise ValueError(f"answers of task {task!r}: the results have {', '.join(described)}")
        methods = {name: methods[name] for name in names if name in methods}
        kept = _fitting(methods, max_bytes // len(answers))
        tasks.append(_task(task, described[task]["primary"], methods, kept, names, texts))
    return {
        "texts": list(texts.numbers),
        "methods": [{"name": name, "color": colors[name]} for name in names],
        "tasks": tasks,
    }


def row_metric(primary: str, outcomes: Sequence[Outcome]) -> str | None:
    """The metric by which a single row is right or wrong.

    The primary one, or where that has no value for a row alone (macro-F1, BLEU) the first proportion or mean there is.
    None where there is none either.
    """
    if any(row_value(primary, outcome) is not None for outcome in outcomes):
        return primary
    columns = dict.fromkeys(column for outcome in outcomes for column in outcome)
    return next((name for name in columns if any(row_value(name, outcome) is not None for outcome in outcomes)), None)


def row_value(metric: str, outcome: Outcome) -> float | None:
    """A metric of one row; None where it has no value there."""
    if metric in RATIOS:
        numbers = [outcome.get(column) for column in RATIOS[metric].columns]
        if any(number is None for number in numbers):
            return None
        try:
            return float(RATIOS[metric].statistic(np.array(numbers, np.float64)))
        except ValueError:  # the weights of this row are 0
            return None
    value = outcome.get(metric)
    return float(value) if isinstance(value, bool | float) else None


def _task(
    name: str, primary: str, methods: Mapping[str, Rows], kept: Sequence[int], names: Sequence[str], texts: _Texts
) -> dict[str, Any]:
    outcomes = [row["outcome"] for rows in methods.values() for row in rows]
    metric = row_metric(primary, outcomes)
    rows = [_row([answers[index] for answers in methods.values()], metric, texts) for index in kept]
    count = max((len(answers) for answers in methods.values()), default=0)
    notes = [f"Rows are judged by {metric_name(metric)}." if metric else "Rows have no score of their own."]
    if metric is not None and metric != primary:
        notes.append(f"{metric_name(primary)} has no value for a single row.")
    if len(kept) < count:
        notes.append(f"{len(kept):,} of {count:,} rows are shown, at even distances; a page of all would be too large.")
    return {
        "name": name,
        "metric": metric_name(metric) if metric else "",
        "note": " ".join(notes),
        "judges": any(answer["right"] is not None for row in rows for answer in row["answers"]),
        "methods": [names.index(method) for method in methods],
        "groups": sorted({row["group"] for row in rows if row["group"]}),
        "rows": rows,
    }


def _row(answers: Rows, metric: str | None, texts: _Texts) -> dict[str, Any]:
    """A row of the task: its first prompt, and another one beside the answer that was given to it."""
    values = [None if metric is None else row_value(metric, answer["outcome"]) for answer in answers]
    first = texts.prompt(answers[0]["prompt"])
    shown = []
    for answer, value in zip(answers, values, strict=True):
        prompt = texts.prompt(answer["prompt"])
        shown.append(
            {
                "answer": texts.number(answer["answer"]),
                "prompt": None if prompt == first else prompt,
                "value": None if value is None else round(value, 4),
                "right": _is_right(metric, value),
                "finish": answer["finish_reason"],
                "outcome": texts.number(json.dumps(answer["outcome"], ensure_ascii=False)),
            }
        )
    return {
        "id": answers[0]["id"],
        "group": answers[0]["group"],
        "reference": texts.number(answers[0]["reference"]),
        "prompt": first,
        "disagree": _disagree(values) if metric is not None else len({answer["answer"] for answer in answers}) > 1,
        "answers": shown,
    }


def _is_right(metric: str | None, value: float | None) -> bool | None:
    """All of a score that lies in [0, 1]; None for others."""
    if metric is None or value is None or higher_is_better(metric) is not True or value > 1 + _EQUAL:
        return None
    return value >= 1 - _EQUAL


def _disagree(values: Sequence[float | None]) -> bool:
    there = [value for value in values if value is not None]
    return bool(there) and (len(there) < len(values) or max(there) - min(there) > _EQUAL)


def _fitting(methods: Mapping[str, Rows], max_bytes: int) -> list[int]:
    """Indices of the rows that are shown."""
    count = max((len(rows) for rows in methods.values()), default=0)
    seen: set[str] = set()
    size = 0
    for rows in methods.values():
        for row in rows:
            parts = [row["prompt"]] if isinstance(row["prompt"], str) else map(_content, row["prompt"])
            new = {*parts, row["answer"], row["reference"], json.dumps(row["outcome"])} - seen
            size += sum(len(text.encode("utf-8", "surrogatepass")) for text in new) + 100
            seen |= new
    return chosen(count, (), count if size <= max_bytes else int(count * max_bytes / size))


def _content(message: Mapping[str, Any]) -> str:
    """What is said, and calls of tools as JSON."""
    content = message.get("content")
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False) if content else ""
    calls = message.get("tool_calls")
    return "\n".join(part for part in (text, json.dumps(calls, ensure_ascii=False) if calls else "") if part)


def _check_rows(task: str, methods: Mapping[str, Rows]) -> None:
    """Raises ValueError unless all methods answered the same rows in the same order."""
    ids = {method: [row["id"] for row in rows] for method, rows in methods.items()}
    first = next(iter(ids))
    for method, there in ids.items():
        if len(there) != len(ids[first]):
            raise ValueError(f"task {task!r}: {len(ids[first])} answers of {first}, {len(there)} of {method}")
        for place, (a, b) in enumerate(zip(ids[first], there, strict=True)):
            if a != b:
                raise ValueError(f"task {task!r}: answer {place} is to row {a!r} for {first}, to {b!r} for {method}")
