"""Directories of sweeps as launchers leave them, written without training anything: made-up losses, real files."""

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from configs import sft
from sft_jax.runs.metric_log import MetricLog
from sft_jax.runs.result import RunEnd, write_result
from sft_jax.sweeps.names import name_of, short_keys
from sft_jax.sweeps.runs import fields_of
from sft_jax.sweeps.status import RunStatus, write_status

STARTED, ENDED = "2026-11-29T10:00:00+00:00", "2026-11-29T10:05:00+00:00"
STEPS, EVERY, TOKENS_A_STEP = 20, 5, 1_000
TWO_FACTORS = {"optimizer.learning_rate": [1e-4, 1e-3], "adapter.rank": [4, 8], "seed": [0, 1, 2]}  # 12 runs

Loss = Callable[[Mapping[str, Any], int], float]  # the overrides of a run, a step -> its held-out loss


def loss_of(overrides: Mapping[str, Any], step: int) -> float:
    """Lower with a higher rate and a higher rank; seeds differ a little."""
    rate, rank = overrides.get("optimizer.learning_rate", 1e-4), overrides.get("adapter.rank", 8)
    floor = 1.0 - 0.2 * math.log10(rate / 1e-4) - 0.05 * math.log2(rank / 4) + 0.01 * overrides.get("seed", 0)
    return floor + 2.0 * math.exp(-step / 6)


def tokens_a_step(overrides: Mapping[str, Any]) -> int:
    """In proportion to the batch."""
    return TOKENS_A_STEP * overrides.get("batch.sequences", 8) // 8


def overrides_of(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """All combinations of the values."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def write_sweep(
    root: Path, grid: Mapping[str, Sequence[Any]] = TWO_FACTORS, loss: Loss = loss_of, unlike: Mapping[int, str] = {}
) -> list[str]:
    """Writes a sweep over a grid; returns the names of its runs.

    Args:
        root: of the sweep.
        grid: field -> its values.
        loss: of a run at a step.
        unlike: number of a run, from 0 -> how it ended, if not well: diverged, running, waiting, interrupted.
    """
    base, runs = fields_of(sft.get_config("lora")), overrides_of(grid)
    keys = short_keys(list(grid))
    names = [name_of(overrides, keys, f"{number:08x}") for number, overrides in enumerate(runs)]
    stated = [{"name": name, "overrides": overrides} for name, overrides in zip(names, runs, strict=True)]
    sweep = {"sweep": "experiments/x/sweep.py", "config": "configs/sft.py:lora", "base": base, "search": None}
    root.mkdir(parents=True, exist_ok=True)
    (root / "sweep.json").write_text(json.dumps(sweep | {"fields": list(grid), "runs": stated}))
    for number, (name, overrides) in enumerate(zip(names, runs, strict=True)):
        write_run(root / name, base | overrides, overrides, loss, unlike.get(number, "finished"))
    return names


def write_run(
    directory: Path,
    fields: Mapping[str, Any],
    overrides: Mapping[str, Any],
    loss: Loss = loss_of,
    state: str = "finished",
) -> None:
    """Writes the directory of a run: config, log, status, and a result if it has ended."""
    if state == "waiting":
        return
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(nested(fields)))
    last = STEPS if state == "finished" else STEPS // 2
    metrics = write_log(directory, overrides, loss, last)
    error = {"diverged": "5 steps in a row had no finite loss", "failed": "the disk is full"}.get(state)
    as_status = {"diverged": "failed"}.get(state, state)
    ended = None if state == "running" else ENDED
    write_status(directory, RunStatus(as_status, 1, 1, "elsewhere", "local", STARTED, ended, error))
    if state == "running":
        return
    evaluations = {step: loss(overrides, step) for step in range(0, last + 1, EVERY)}
    best = min(evaluations, key=evaluations.get)
    at_best = {"step": best, "metric": "held_out/nll", "metrics": {"held_out/nll": evaluations[best]}}
    tokens = tokens_a_step(overrides)
    counters = {"examples": 8 * last, "tokens": tokens * last, "supervised_tokens": 0.4 * tokens * last, "epochs": 1.0}
    write_result(directory, RunEnd(state, last, STEPS, metrics, at_best, counters, 0.5 * last, None, error))


def write_log(directory: Path, overrides: Mapping[str, Any], loss: Loss, last: int) -> dict[str, float]:
    """The log up to a step, as training writes it; its last figures."""
    log, line = MetricLog(epath.Path(directory), -1), {}
    for step in range(last + 1):
        line = {} if step == 0 else {"train/loss": loss(overrides, step) - 0.1, "speed/seconds_per_step": 0.5}
        if step % EVERY == 0:
            held_out = loss(overrides, step)
            line |= {"held_out/nll": held_out, "held_out/loss": held_out, "held_out/accuracy": math.exp(-held_out)}
        if step:
            seen = tokens_a_step(overrides) * step
            line |= {"progress/tokens": float(seen), "progress/supervised_tokens": 0.4 * seen}
        log.scalars(step, line)
    log.close()
    return line


def write_evaluation(directory: Path, step: int, task: str, right: Sequence[bool]) -> None:
    """What a run keeps of a task: `evaluations/<step>/<task>.json`, and the score in the log."""
    outcomes = [{"exact_match": bool(one)} for one in right]
    lines = [
        {
            "id": f"rows.jsonl:{number}",
            "prompt": f"question {number}",
            "answer": "yes" if one else "no",
            "finish_reason": "stop",
            "reference": "yes",
            "group": "",
            "differs": [],
            "outcome": outcome,
        }
        for number, (one, outcome) in enumerate(zip(right, outcomes, strict=True), 1)
    ]
    kept = {"outcomes": outcomes, "lines": lines, "prompt_tokens": 3.0, "generated_tokens": 1.0, "seconds": 0.1}
    path = directory / "evaluations" / str(step) / f"{task}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept | {"cut": 0, "notes": []}))
    log = (directory / "metrics.jsonl").read_text().split("\n")
    changed = [json.loads(line) for line in log if line]
    for line in changed:
        if line["step"] == step:
            line[f"tasks/{task}/exact_match"] = float(np.mean(right))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))


def nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The config that has these fields by path."""
    made: dict[str, Any] = {}
    for path, value in fields.items():
        *sections, name = path.split(".")
        holder = made
        for section in sections:
            holder = holder.setdefault(section, {})
        holder[name] = value
    return made
