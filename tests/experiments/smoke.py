"""Runs an experiment from its first command to its table, with a tiny model, and reads what it wrote."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

MODEL = (
    "random:smollm2-135m-instruct?num_hidden_layers=2&hidden_size=64&intermediate_size=96&num_attention_heads=2"
    "&num_key_value_heads=1"
)
_DRIVER, _ROOT = Path(__file__).with_name("driver.py"), Path(__file__).parents[2]


def started(directory: Path, experiment: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m experiments.EXPERIMENT.run arguments` into `directory/out`, however it ends."""
    command = [sys.executable, str(_DRIVER), f"experiments.{experiment}.run", f"--out={directory / 'out'}", *arguments]
    caches = {"JAX_COMPILATION_CACHE_DIR": str(directory / "compiled"), "HOME": str(directory)}
    return subprocess.run(command, cwd=_ROOT, env=os.environ | caches, capture_output=True, text=True, check=False)


def called(directory: Path, experiment: str, *arguments: str) -> str:
    """What an experiment prints that reaches its end with a small model.

    The model has the tokenizer of SmolLM2, and two layers of random weights.
    """
    done = started(directory, experiment, f"--model={MODEL}", *arguments)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def table_of(directory: Path) -> list[list[str]]:
    """The cells of the first table that the experiment wrote, its header first, without the line of dashes."""
    lines = (directory / "out" / "table.md").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    cells = lambda line: re.split(r"(?<!\\)\|", line.strip("|"))  # a bar within a cell is escaped
    rows = [[re.sub(r"\\(.)", r"\1", cell.strip()) for cell in cells(line)] for line in lines if line.startswith("|")]
    return [rows[0], *rows[2:]]


def rows_of(path: Path) -> list[dict]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
