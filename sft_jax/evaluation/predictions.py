"""The rows of an evaluation as files: prompt, answer, reference and outcome of each, by task and method.

`--compare` reads those of an earlier evaluation, so that its methods stand beside the new ones.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from sft_jax.evaluation.measuring import Entry
from sft_jax.runs.workdir import write_whole

Rows = Sequence[Mapping[str, Any]]
FOLDER = "predictions"


def write_predictions(directory: epath.Path, rows: Mapping[str, Mapping[str, Rows]]) -> None:
    """Writes `predictions/<task>/<method>.jsonl`.

    Args:
        directory: of the evaluation.
        rows: task -> method -> a row for each record.
    """
    for task, by_method in rows.items():
        (directory / FOLDER / task).mkdir(parents=True, exist_ok=True)
        for method, lines in by_method.items():
            text = "".join(json.dumps(line, ensure_ascii=True) + "\n" for line in lines)
            write_whole(directory / FOLDER / task / f"{method}.jsonl", text)


def read_predictions(directory: epath.Path, entries: Sequence[Entry]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """task -> method -> rows of an earlier evaluation, for the tasks that are measured now.

    Raises:
        ValueError: there is none of these tasks, or one of other rows.
    """
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for entry in entries:
        folder = directory / FOLDER / entry.name
        if not folder.exists():
            continue
        found[entry.name] = {}
        for path in sorted(folder.glob("*.jsonl")):
            # Only \n ends a line: str.splitlines would also cut at U+2028.
            rows = [json.loads(line) for line in path.read_text().rstrip("\n").split("\n")]
            if [row["id"] for row in rows] != [record.id for record in entry.records]:
                raise ValueError(
                    f"{path} is of other rows than task {entry.name} has now; a paired test needs the same ones"
                )
            found[entry.name][path.stem] = rows
    if not found:
        names = ", ".join(entry.name for entry in entries)
        raise ValueError(f"--compare={directory} holds no predictions of these tasks: {names}")
    return found
