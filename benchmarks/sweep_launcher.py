"""What the local launcher itself takes: time a run, and memory, with runs that do nothing.

    python -m benchmarks.sweep_launcher --runs=200 --workers=4

Workers write what training would, status and result, and train nothing. The time of the launcher's own process is what
counts: the processor's in it, and between the first start and the last end on the clock.
"""

import io
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags
from etils import epath
from rich.console import Console

from configs import sft
from sft_jax.sweeps.directory import SweepDirectory, claim_sweep
from sft_jax.sweeps.launchers import local

_RUNS = flags.DEFINE_integer("runs", 200, "How many.", lower_bound=2)
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes.", lower_bound=1)
_TERMINAL = flags.DEFINE_bool("terminal", False, "Show a live table, as on a terminal, instead of lines.")
WORKER = """
import json, sys
from pathlib import Path
from sft_jax.sweeps.launchers import worker
from sft_jax.sweeps.status import RunStatus, write_status

def execute(name, answer):
    directory = Path(sys.argv[1]) / name
    write_status(directory, RunStatus().begun("local").ended_as("finished"))
    answer({"run": name, "total_steps": 1})
    metrics = {"step": 1, "train/loss": 1.0, "held_out/nll": 1.0}
    (directory / "metrics.jsonl").write_text(json.dumps(metrics) + "\\n")
    result = {"state": "finished", "step": 1, "total_steps": 1, "metrics": {"held_out/nll": 1.0}, "best": None}
    result |= {"counters": {}, "seconds": 0.1, "peak_memory_bytes": None, "error": None}
    (directory / "result.json").write_text(json.dumps(result))
    return "finished", None

worker.serve(execute)
"""


def sweep_of(root: epath.Path, runs: int) -> SweepDirectory:
    """A sweep of so many runs that differ in learning rate and seed."""
    base = sft.get_config("lora").lock()
    stated = [{"optimizer.learning_rate": 1e-4 * (1 + number // 3), "seed": number % 3} for number in range(runs)]
    return claim_sweep(root, sweep="benchmarks/sweep.py", config="configs/sft.py:lora", base=base, stated=stated)


def launched(sweep: SweepDirectory, workers: int, terminal: bool = False) -> int:
    """Executes the runs of a sweep by workers that do nothing; the exit status."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120, height=40)
    command = [sys.executable, "-c", WORKER, str(sweep.root)]
    return local.launch(sweep, sweep.stated_runs, workers=workers, console=console, command=command)


def main(_: list[str]) -> None:
    """Prints seconds a run and memory, for few runs and for all."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        for name, runs in (("first", 2), ("some", max(2, _RUNS.value // 4)), ("all", _RUNS.value)):
            sweep = sweep_of(epath.Path(root / name), runs)
            clock, processor = time.perf_counter(), time.process_time()
            code = launched(sweep, _WORKERS.value, _TERMINAL.value)
            seconds, own = time.perf_counter() - clock, time.process_time() - processor
            figures = {
                "runs": runs,
                "exit_status": code,
                "seconds_a_run": round(seconds / runs, 4),
                "own_processor_seconds_a_run": round(own / runs, 4),
                "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            }
            print(json.dumps(figures))


if __name__ == "__main__":
    app.run(main)
