"""The rows of an evaluation as files: prompt, answer, reference and outcome of each, by task and method.

`--compare` reads those of an earlier evaluation, so that its methods stand beside the new ones.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from sft_jax.evaluation.measuring import Entry, reference_text
from sft_jax.evaluation.report.write import RESULTS
from sft_jax.runs.workdir import PREDICTIONS, write_whole

Rows = Sequence[Mapping[str, Any]]
_BEFORE = "{} (before)"


def write_predictions(directory: epath.Path, rows: Mapping[str, Mapping[str, Rows]]) -> None:
    """Writes `predictions/<task>/<method>.jsonl`.

    Args:
        directory: of the evaluation.
        rows: task -> method -> a row for each record.
    """
    for task, by_method in rows.items():
        (directory / PREDICTIONS / task).mkdir(parents=True, exist_ok=True)
        for method, lines in by_method.items():
            text = "".join(json.dumps(line, ensure_ascii=True) + "\n" for line in lines)
            write_whole(directory / PREDICTIONS / task / f"{method}.jsonl", text)


@dataclasses.dataclass(frozen=True)
class Before:
    """An earlier evaluation of the same rows.

    Attributes:
        rows: task -> method -> rows. Methods are called `sft (before)` and so on.
        methods: method -> what its `results.json` says of it.
    """

    rows: Mapping[str, Mapping[str, Rows]]
    methods: Mapping[str, Mapping[str, Any]]


def read_before(directory: epath.Path, entries: Sequence[Entry]) -> Before:
    """An earlier evaluation, for the tasks that are measured now.

    Raises:
        ValueError: there is no finished one, none of these tasks, or one of other rows.
    """
    if not (directory / RESULTS).exists():
        raise ValueError(f"--compare={directory} holds no finished evaluation: there is no {RESULTS}")
    described = json.loads((directory / RESULTS).read_text())["methods"]
    rows = {entry.name: _of_task(directory / PREDICTIONS / entry.name, entry, described) for entry in entries}
    rows = {task: by_method for task, by_method in rows.items() if by_method}
    if not rows:
        names = ", ".join(entry.name for entry in entries)
        raise ValueError(f"--compare={directory} holds no predictions of these tasks: {names}")
    used = {name for by_method in rows.values() for name in by_method}
    return Before(rows, {_BEFORE.format(name): one for name, one in described.items() if _BEFORE.format(name) in used})


def with_rows_of(before: Before | None, rows: Mapping[str, Mapping[str, Rows]]) -> dict[str, dict[str, Rows]]:
    """The rows of both evaluations, by task and method, for the page."""
    earlier = before.rows if before else {}
    return {task: {**by_method, **earlier.get(task, {})} for task, by_method in rows.items()}


def _of_task(folder: epath.Path, entry: Entry, methods: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """Method -> rows of a task, of those methods that it was measured with."""
    found = {}
    for method in methods:
        path = folder / f"{method}.jsonl"
        if not path.exists():
            continue
        # Only \n ends a line: str.splitlines would also cut at U+2028.
        rows = [json.loads(line) for line in path.read_text().rstrip("\n").split("\n")]
        known = [(record.id, reference_text(record)) for record in entry.records]
        if [(row["id"], row["reference"]) for row in rows] != known:
            raise ValueError(
                f"{path} is of other rows than task {entry.name} has now; a paired test needs the same ones"
            )
        found[_BEFORE.format(method)] = rows
    return found
