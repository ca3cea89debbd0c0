"""The launcher that starts nothing: it says the command of each run, for a scheduler of one's own."""

import shlex
from collections.abc import Sequence

from rich.console import Console

from sft_jax.sweeps.directory import SweepDirectory
from sft_jax.sweeps.runs import SweepRun


def launch(sweep: SweepDirectory, todo: Sequence[SweepRun], console: Console | None = None) -> int:
    """Prints a command a line, for the runs that are not done.

    Args:
        sweep: its directory, which is written.
        todo: the runs.
        console: where; by default the terminal.

    Returns:
        the exit status, 0.
    """
    console = console or Console()
    for run in todo:
        command = ["python", "-m", "sft_jax.sweep_run", f"--workdir={sweep.root}", f"--run={run.name}"]
        console.print(shlex.join(command), markup=False, highlight=False, soft_wrap=True)
    return 0
