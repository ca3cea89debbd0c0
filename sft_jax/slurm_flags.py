"""Flags of `--launcher=slurm`: what the jobs of a sweep ask SLURM for."""

import re

from absl import flags

from sft_jax import commands

_PARTITION = flags.DEFINE_string("slurm_partition", "", "Partition of the jobs; by default the cluster's.")
_ACCOUNT = flags.DEFINE_string("slurm_account", "", "Account that the jobs are charged to.")
_QOS = flags.DEFINE_string("slurm_qos", "", "Quality of service.")
_CONSTRAINT = flags.DEFINE_string("slurm_constraint", "", "Features that hosts must have.")
_NODES = flags.DEFINE_integer("slurm_nodes", 1, "Hosts of a run, with one process on each.", lower_bound=1)
_GPUS = flags.DEFINE_string("slurm_gpus", "", "GPUs of each host: a number, or kind:number.")
_CPUS = flags.DEFINE_integer("slurm_cpus", 0, "CPUs of each host; 0: the cluster's default.", lower_bound=0)
_MEM = flags.DEFINE_string("slurm_mem", "", "Memory of each host, as 64GB; by default the cluster's.")
_MINUTES = flags.DEFINE_integer("slurm_minutes", 60, "After which a job is ended.", lower_bound=1)
_WARNING_SECONDS = flags.DEFINE_integer(
    "slurm_warning_seconds", 120, "Before its end, in which a job saves and goes back into the queue.", lower_bound=1
)
_MAX_TIMEOUTS = flags.DEFINE_integer(
    "slurm_max_timeouts", 3, "How often a job whose time is over goes back into the queue.", lower_bound=0
)
_MAX_RESTARTS = flags.DEFINE_integer(
    "slurm_max_restarts", 3, "How often a job goes back because a process of its run died.", lower_bound=0
)
_ARRAY_PARALLELISM = flags.DEFINE_integer("slurm_array_parallelism", 256, "Runs at a time, at most.", lower_bound=1)
_SETUP = flags.DEFINE_multi_string("slurm_setup", [], "A shell command before the run, as 'module load cuda'.")
_OPTION = flags.DEFINE_multi_string("slurm_option", [], "Any other option of sbatch, as mail-type=END.")
_WAIT = flags.DEFINE_bool("wait", False, "Follow the jobs to their end; Ctrl-C leaves them in the queue.")

_HOLDERS = (
    *(_PARTITION, _ACCOUNT, _QOS, _CONSTRAINT, _NODES, _GPUS, _CPUS, _MEM, _MINUTES, _WARNING_SECONDS),
    *(_MAX_TIMEOUTS, _MAX_RESTARTS, _ARRAY_PARALLELISM, _SETUP, _OPTION, _WAIT),
)
# Options of sbatch by which a job is found again, or that other flags set.
_TAKEN = {
    "partition": _PARTITION.name,
    "account": _ACCOUNT.name,
    "qos": _QOS.name,
    "constraint": _CONSTRAINT.name,
    "nodes": _NODES.name,
    "gpus-per-node": _GPUS.name,
    "cpus-per-task": _CPUS.name,
    "mem": _MEM.name,
    "time": _MINUTES.name,
    "signal": _WARNING_SECONDS.name,
    "array": _ARRAY_PARALLELISM.name,
}
_FIXED = (
    "job-name",
    "ntasks",
    "ntasks-per-node",
    "output",
    "error",
    "open-mode",
    "wckey",
    "requeue",
    "no-requeue",
    "wrap",
)


def refuse() -> None:
    """Refuses all of them, for another launcher.

    Raises:
        ValueError: some were given.
    """
    commands.refuse_unread([holder.name for holder in _HOLDERS], "--launcher=slurm")


def options(stop_after: int | None = None):
    """What the flags say.

    Args:
        stop_after: the step after which runs pause, where they do.

    Raises:
        ValueError: a value that sbatch cannot have.
    """
    from sft_jax.sweeps.launchers.slurm import SlurmOptions

    _check(_GPUS, r"([A-Za-z0-9_.-]+:)?[1-9][0-9]*", "a number, or kind:number as a100:4")
    _check(_MEM, r"[0-9]+([KMGT]B?)?", "a number with its unit, as 64GB")
    if _WARNING_SECONDS.value >= 60 * _MINUTES.value:
        raise ValueError(
            f"--{_WARNING_SECONDS.name}={_WARNING_SECONDS.value}: a job of "
            f"--{_MINUTES.name}={_MINUTES.value} ends before that; give it more minutes, or fewer seconds"
        )
    return SlurmOptions(
        partition=_PARTITION.value,
        account=_ACCOUNT.value,
        qos=_QOS.value,
        constraint=_CONSTRAINT.value,
        nodes=_NODES.value,
        gpus=_GPUS.value,
        cpus=_CPUS.value,
        mem=_MEM.value,
        minutes=_MINUTES.value,
        warning_seconds=_WARNING_SECONDS.value,
        max_timeouts=_MAX_TIMEOUTS.value,
        max_restarts=_MAX_RESTARTS.value,
        array_parallelism=_ARRAY_PARALLELISM.value,
        setup=tuple(_SETUP.value),
        more=_more(),
        wait=_WAIT.value,
        stop_after=stop_after,
    )


def _check(holder: flags.FlagHolder, form: str, expected: str) -> None:
    if holder.value and not re.fullmatch(form, holder.value):
        raise ValueError(f"--{holder.name}={holder.value}: expected {expected}")


def _more() -> dict[str, str | bool]:
    """The options of `--slurm_option`, by name.

    Raises:
        ValueError: no option, or one that is not free.
    """
    made = {}
    for given in _OPTION.value:
        name, has_value, value = given.partition("=")
        if not re.fullmatch(r"[a-z][a-z-]+", name) or "\n" in value:
            raise ValueError(
                f"--{_OPTION.name}={given}: expected a long option of sbatch without its dashes, as "
                "mail-type=END or exclusive"
            )
        if name in _TAKEN:
            raise ValueError(f"--{_OPTION.name}={given}: give --{_TAKEN[name]} in its place")
        if name in _FIXED:
            raise ValueError(f"--{_OPTION.name}={given}: the launcher sets {name} itself; leave it out")
        made[name] = value if has_value else True
    return made
