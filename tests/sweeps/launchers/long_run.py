"""A run that does not end by itself within a test, and how far it is."""

import json
import time
from pathlib import Path

STEPS = 1_000_000
OVERRIDES = {
    "duration": f"{STEPS} steps",
    "evaluation.every": f"{STEPS} steps",
    "checkpoint.every": f"{STEPS} steps",
    "log.every": 10,
    "optimizer.learning_rate": 1e-5,
}
PATIENCE_SECONDS = 200  # until a test fails


def steps(directory: Path) -> list[int]:
    """Steps that are logged, but for the last, which may be in the making."""
    log = Path(directory) / "metrics.jsonl"
    return [json.loads(line)["step"] for line in log.read_text().splitlines()[:-1]] if log.exists() else []


def until(reached, logs: Path) -> None:
    """Waits for something that takes as long as it takes; fails with the ends of the logs in a directory."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not reached():
        if time.monotonic() > deadline:
            found = (log for log in sorted(Path(logs).rglob("*log*")) if log.is_file())
            said = "\n".join(f"{log}: {log.read_text()[-2000:]}" for log in found)
            raise AssertionError(f"not reached within {PATIENCE_SECONDS} s\n{said}")
        time.sleep(0.2)
