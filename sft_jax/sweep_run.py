"""Executes one run of a sweep, for schedulers that `python -m sft_jax.sweep` does not know.

    python -m sft_jax.sweep --config=configs/sft.py:lora --sweep=sweep.py --workdir=runs/rank --launcher=list
    python -m sft_jax.sweep_run --workdir=runs/rank --run=rank=8,seed=0-3f9a2c1b
    python -m sft_jax.sweep_run --workdir=runs/rank --run=3 --distributed       # the same command on every host

The first one writes the directory and prints a command for each run. A run that is done is left alone; one that was
interrupted goes on. Exit status 0: the run is done; 1: it failed; 143: it was ended by SIGTERM and is saved.
"""

import sys

from absl import flags

from sft_jax import commands

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the sweep.", required=True)
_RUN = flags.DEFINE_string("run", None, "Name of the run, or its place in sweep.json from 0.", required=True)
_STATUS = {"finished": 0, "stopped_early": 0, "interrupted": 143}  # any other has failed


def main(_: list[str]) -> None:
    """Runs what the flags ask for."""
    from sft_jax.runs.result import read_result
    from sft_jax.sweeps.directory import open_sweep
    from sft_jax.sweeps.executing import execute
    from sft_jax.sweeps.hparams import show_session
    from sft_jax.sweeps.shared import Shared

    commands.start_jax(several_processes=True)
    sweep = open_sweep(_WORKDIR.value)
    run = _chosen(sweep)
    end = read_result(sweep.run_dir(run.name))
    if end is None or not end.done:
        shown = lambda: show_session(sweep.root, run.name)  # listed while it runs, with its figures at its end
        end = execute(run, sweep.run_dir(run.name), Shared(), on_start=lambda total_steps: shown())
        shown()
    why = f": {end.error}" if end.error else ""
    print(f"{run.name}: {end.state} at step {end.step} of {end.total_steps}{why}")
    sys.exit(_STATUS.get(end.state, 1))


def _chosen(sweep):
    """The run that the flags name.

    Raises:
        ValueError: there is none.
    """
    by_name = {run.name: run for run in sweep.runs}
    if _RUN.value in by_name:
        return by_name[_RUN.value]
    if _RUN.value.isdecimal() and int(_RUN.value) < len(sweep.runs):
        return sweep.runs[int(_RUN.value)]
    names = "\n  ".join(by_name)
    raise ValueError(
        f"--run={_RUN.value}: expected a number from 0 to {len(sweep.runs) - 1}, or one of the runs of {sweep.root}:\n"
        f"  {names}"
    )


if __name__ == "__main__":
    commands.run(main, several_processes=True)
