"""What is kept of the answers that a run was trained on: `samples/<step>.jsonl` of its directory, a line an answer.

The file of a step is there, whole, before the step is taken, and so before a checkpoint of it can be.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from sft_jax.runs.workdir import SAMPLES, write_whole


def write_samples(workdir: epath.Path, step: int, lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes those of a step, counted from 1."""
    path = path_of(workdir, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(json.dumps(line) + "\n" for line in lines))


def forget_after(workdir: epath.Path, step: int) -> None:
    """Removes those of later steps, which are taken again."""
    if not (workdir / SAMPLES).exists():
        return
    for path in (workdir / SAMPLES).iterdir():
        if path.suffix == ".jsonl" and int(path.stem) > step:
            path.unlink()


def path_of(workdir: epath.Path, step: int) -> epath.Path:
    """The file of a step, counted from 1."""
    return workdir / SAMPLES / f"{step:06d}.jsonl"
