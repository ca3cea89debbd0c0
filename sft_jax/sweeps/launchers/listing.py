"""The launcher that starts nothing: it prints the command of each run, for a scheduler of your own.

It also brings TensorBoard's HParams up to date, as the other launchers do while they wait for their runs.
"""

import shlex
from collections.abc import Sequence

from rich.console import Console

from sft_jax.sweeps.directory import SweepDirectory
from sft_jax.sweeps.hparams import write_hparams
from sft_jax.sweeps.runs import SweepRun


def launch(sweep: SweepDirectory, todo: Sequence[SweepRun], console: Console | None = None) -> int:
    """Prints a command a line, for the runs that are not done.

    Args:
        sweep: its directory, which is written.
        todo: the runs.
        console: where; by default the terminal.

    Returns:
        the exit status, 0.

    Raises:
        WorkdirError: a file of a run is damaged.
    """
    write_hparams(sweep.root)
    console = console or Console()
    for run in todo:
        command = ["python", "-m", "sft_jax.sweep_run", f"--workdir={sweep.root}", f"--run={run.name}"]
        console.print(shlex.join(command), markup=False, highlight=False, soft_wrap=True)
    return 0
