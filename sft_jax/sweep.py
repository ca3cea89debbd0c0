"""Runs a sweep: many runs that answer one question, stated by a file.

    python -m sft_jax.sweep --config=configs/sft.py:lora --sweep=mine.py --workdir=runs/mine
    python -m sft_jax.sweep … --dry_run        # the runs, memory of their steps, and time by earlier runs
    python -m sft_jax.sweep … --launcher=slurm --slurm_gpus=1      # --helpfull lists the flags of SLURM

Started again it goes on: runs that are finished stay, those that failed or were interrupted continue from their
checkpoints, and those that are new in the file are added. All of them are checked before the first starts.
"""

import fnmatch
import sys

from absl import flags

from sft_jax import commands, config_flag, slurm_flags

_CONFIG = config_flag.define()
_SWEEP = flags.DEFINE_string(
    "sweep",
    None,
    "Sweep file, for example experiments/data_size/sweep.py; :ARGUMENT behind it is given to its functions.",
    required=True,
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the sweep, in which each run has one.", required=True)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Show the runs, what is done, memory and time; start nothing.")
_LAUNCHER = flags.DEFINE_enum(
    "launcher",
    "local",
    ["local", "slurm", "stacked", "list"],
    "Where runs are executed: by processes here, as jobs of SLURM, together in one program; list: by whoever takes the "
    "commands that are printed.",
)
_WORKERS = flags.DEFINE_integer(
    "workers", None, "Of --launcher=local: processes at a time; by default one a GPU, else one.", lower_bound=1
)
_RETRIES = flags.DEFINE_integer(
    "retries", 0, "Of --launcher=local: further attempts of a run that fails.", lower_bound=0
)
_STACK = flags.DEFINE_integer(
    "stack", 8, "Of --launcher=stacked: runs that train together in one program, at most.", lower_bound=1
)
_ONLY = flags.DEFINE_string("only", "", "Start only runs whose names match this pattern, as '*seed=0-*'.")


def main(_: list[str]) -> None:
    """Runs what the flags ask for."""
    commands.refuse_several_processes()
    _check_flags()
    _choose_device()
    from rich.console import Console

    from sft_jax.sweeps.statement import Statement

    to_be_run = _LAUNCHER.value == "list" and not _DRY_RUN.value  # what stands on standard output
    console = Console(stderr=to_be_run)
    statement = Statement.of(_SWEEP.value, flags.FLAGS[config_flag.NAME].config_filename, _CONFIG.value, _WORKDIR.value)
    if statement.search is not None:
        _check_search(type(statement.search).__name__)
    if _DRY_RUN.value:
        statement.show(console)
        return
    sys.exit(statement.run(_launch, _is_wanted, console))


def _check_flags() -> None:
    """Refuses flags of other launchers.

    Raises:
        ValueError: some were given.
    """
    if _LAUNCHER.value != "local":
        commands.refuse_unread([_WORKERS.name, _RETRIES.name], "--launcher=local")
    if _LAUNCHER.value != "stacked":
        commands.refuse_unread([_STACK.name], "--launcher=stacked")
    if _LAUNCHER.value == "slurm":
        slurm_flags.options()
    else:
        slurm_flags.refuse()


def _check_search(search: str) -> None:
    """Refuses what does not go with a search, which chooses its runs by the results of others.

    Args:
        search: its kind.

    Raises:
        ValueError: it was given.
    """
    if _ONLY.value:
        raise ValueError("--only: a search chooses its runs itself; leave it out")
    if _LAUNCHER.value == "list":
        raise ValueError(f"--launcher=list: its commands run to their end, which {search} decides; give another")
    if _LAUNCHER.value == "slurm" and not slurm_flags.options().wait:
        raise ValueError(f"--launcher=slurm: {search} needs the results of its jobs; give --wait")


def _choose_device() -> None:
    """Leaves accelerators to the processes that train; a dry run compiles for them, and takes no memory of theirs."""
    import os

    import jax

    if _DRY_RUN.value:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    elif _LAUNCHER.value != "stacked":
        jax.config.update("jax_platforms", "cpu")
    commands.start_jax()


def _is_wanted(name: str) -> bool:
    return not _ONLY.value or fnmatch.fnmatchcase(name, _ONLY.value)


def _launch(sweep, todo, stop_after: int | None) -> int:
    """Has runs executed; the exit status.

    Args:
        sweep: SweepDirectory, claimed.
        todo: runs of it that are not done.
        stop_after: a step after which each of them pauses; None for its end.
    """
    if _LAUNCHER.value == "local":
        from sft_jax.sweeps.launchers.local import launch

        return launch(sweep, todo, workers=_WORKERS.value, retries=_RETRIES.value, stop_after=stop_after)
    if _LAUNCHER.value == "slurm":
        from sft_jax.sweeps.launchers.slurm import launch

        return launch(sweep, todo, slurm_flags.options(stop_after))
    if _LAUNCHER.value == "list":
        from sft_jax.sweeps.launchers.listing import launch

        return launch(sweep, todo)
    from sft_jax.sweeps.launchers.stacked import launch

    return launch(sweep, todo, largest=_STACK.value, stop_after=stop_after)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    commands.run(main)
