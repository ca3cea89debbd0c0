"""The local launcher in a process of its own: `launch_driver.py ROOT WORKERS '{RUN: TROUBLE}'`."""

import json
import sys
from pathlib import Path

from rich.console import Console

from sft_jax.sweeps.directory import open_sweep
from sft_jax.sweeps.launchers.local import launch

WORKER = Path(__file__).with_name("troubled_worker.py")


def main(root: str, workers: int, troubles: dict[str, str]) -> int:
    sweep = open_sweep(root)
    command = [sys.executable, str(WORKER), json.dumps(troubles), root, str(1 << 30), ""]
    return launch(sweep, sweep.stated_runs, workers=workers, console=Console(width=200), command=command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])))
