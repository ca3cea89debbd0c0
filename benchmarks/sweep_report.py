"""Times what is done for the readers of a sweep: its report, and its HParams summary, for many runs with long logs.

    python -m benchmarks.sweep_report [--runs=200] [--lines=500]

The sweep is written first, with 60 metrics a line, and is not timed. Needs the repository's tests.
"""

import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags
from rich.console import Console
from rich.table import Table

_RUNS = flags.DEFINE_integer("runs", 200, "Runs of the sweep.", lower_bound=6)
_LINES = flags.DEFINE_integer("lines", 500, "Lines of the log of a run.", lower_bound=2)
_METRICS = 60


def main(_: list[str]) -> None:
    """Writes, times and prints."""
    with tempfile.TemporaryDirectory() as root:
        count = _write(Path(root) / "sweep")
        table = Table(
            "part", "seconds", "of them CPU", title=f"{count} runs, {_LINES.value} lines of {_METRICS} metrics each"
        )
        for part, seconds, used in _timed(Path(root) / "sweep"):
            table.add_row(part, f"{seconds:.2f}", "" if used is None else f"{used:.2f}")
    Console().print(table)


def _write(root: Path) -> int:
    from tests.sweeps import written

    settings = -(-_RUNS.value // 3)
    rates = [10 ** -(2 + 3 * number / settings) for number in range(-(-settings // 2))]
    names = written.write_sweep(root, {"optimizer.learning_rate": rates, "adapter.rank": [4, 8], "seed": [0, 1, 2]})
    for number, name in enumerate(names):
        more = {f"train/metric_{place}": number / (place + 1) for place in range(_METRICS - 6)}
        lines = []
        for step in range(_LINES.value):
            loss = 1 + number / len(names) + 2 * math.exp(-step / 50)
            counted = {"progress/tokens": 4096 * step, "progress/supervised_tokens": 1024 * step}
            losses = {"train/loss": loss, "held_out/loss": loss, "held_out/nll": loss, "speed/seconds_per_step": 0.5}
            lines.append(json.dumps({"step": step} | losses | counted | more) + "\n")
        (root / name / "metrics.jsonl").write_text("".join(lines))
    return len(names)


def _timed(root: Path) -> list[tuple[str, float, float | None]]:
    """Part, seconds, seconds of this process's CPU time."""
    found, started, used = [], time.perf_counter(), time.process_time()

    def lap(part: str) -> None:
        nonlocal started, used
        found.append((part, time.perf_counter() - started, time.process_time() - used))
        started, used = time.perf_counter(), time.process_time()

    from sft_jax.sweeps.hparams import write_experiment, write_hparams, write_session
    from sft_jax.sweeps.report.analysis import analyse
    from sft_jax.sweeps.report.curves import curves_of
    from sft_jax.sweeps.report.plots import draw_sweep
    from sft_jax.sweeps.report.quantities import LOGGED, USUAL, quantity_of
    from sft_jax.sweeps.report.reading import read_runs
    from sft_jax.sweeps.report.write import write_sweep_report

    lap("")
    runs = read_runs(root, {*LOGGED, *USUAL})
    lap("report: reading")
    quantity = quantity_of(runs, "", "final", None)
    analysis = analyse(runs, quantity)
    lap("report: statistics")
    plots = draw_sweep(analysis, curves_of(runs, quantity, "steps"), "steps")
    lap("report: plots")
    write_sweep_report(analysis, plots, root / "report")
    lap("report: files")
    write_hparams(root)
    lap("HParams: all of it")
    write_session(root, runs.runs[0].name)
    write_experiment(root)
    lap("HParams: after a run")
    subprocess.run([sys.executable, "-m", "sft_jax.report", root], check=True, stdout=subprocess.DEVNULL)
    return [*found[1:], ("python -m sft_jax.report", time.perf_counter() - started, None)]


if __name__ == "__main__":
    app.run(main)
