"""The SLURM launcher: the runs of a sweep as an array of jobs, submitted through submitit.

It comes back at once. Started again it shows how far the runs are, and submits those that are neither done nor in the
queue. A run is one job, on one host or on several with a process each (`slurm_job.py`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_jax.runs.workdir import is_remote
from sft_jax.sweeps.directory import SweepDirectory
from sft_jax.sweeps.launchers.slurm_queue import (
    DIRECTORY,
    Job,
    SlurmError,
    Submission,
    jobs_of,
    new_name,
    read_submissions,
    write_submissions,
)
from sft_jax.sweeps.runs import SweepRun
from sft_jax.sweeps.status import RunStatus, read_status, write_status

_INSTALL = "pip install -r requirements-slurm.txt"
_POLL_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class SlurmOptions:
    """What each job asks SLURM for, and how it is followed; empty texts and 0 leave it to the cluster.

    Attributes:
        partition: where jobs run.
        account: whose they are.
        qos: quality of service.
        constraint: features that hosts must have.
        nodes: hosts of a run; one process on each.
        gpus: of each host; a number, or kind:number.
        cpus: of each host.
        mem: memory of each host, as `64GB`.
        minutes: after which SLURM ends a job.
        warning_seconds: how long before that, or before it is preempted, a job is told to save.
        max_timeouts: how often a run whose time is over goes back into the queue.
        array_parallelism: so many runs at a time.
        setup: shell commands before the run starts, as `module load cuda`.
        more: options of sbatch beside these, by their names without `--`; True for one that has no value.
        wait: follow the runs to their end.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    nodes: int = 1
    gpus: str = ""
    cpus: int = 0
    mem: str = ""
    minutes: int = 60
    warning_seconds: int = 120
    max_timeouts: int = 3
    array_parallelism: int = 256
    setup: tuple[str, ...] = ()
    more: Mapping[str, str | bool] = dataclasses.field(default_factory=dict)
    wait: bool = False

    def parameters(self, name: str) -> dict[str, Any]:
        """For submitit's SLURM executor, of jobs of this name."""
        step = [f"--cpus-per-task={self.cpus}"] if self.cpus else []  # srun does not take it from sbatch
        step += ["--kill-on-bad-exit=1"] if self.nodes > 1 else []  # of one run: a process alone would wait
        asked = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "gpus_per_node": self.gpus,
            "cpus_per_task": self.cpus,
            "mem": self.mem,
            "setup": list(self.setup),
            "srun_args": step,
        }
        return {name: value for name, value in asked.items() if value} | {
            "job_name": name,
            "nodes": self.nodes,
            "ntasks_per_node": 1,
            "time": self.minutes,
            "signal_delay_s": self.warning_seconds,
            "array_parallelism": self.array_parallelism,
            "stderr_to_stdout": True,
            "additional_parameters": {"requeue": True} | dict(self.more),
        }


def launch(sweep: SweepDirectory, todo: Sequence[SweepRun], options: SlurmOptions) -> int:
    """Submits the runs that are neither done nor in the queue, and shows all; with `wait` follows them to their end.

    Args:
        sweep: its directory, which all hosts share.
        todo: its runs that are not done.
        options: what jobs ask for.

    Returns:
        exit status: 1 where it waited and a run is not done, else 0.

    Raises:
        SlurmError: SLURM or submitit is not there, or does not take the jobs.
        WorkdirError: what was noted of earlier submissions is damaged.
    """
    submitit = _submitit()
    if is_remote(sweep.root):
        raise SlurmError(f"{sweep.root}: with --launcher=slurm give a --workdir on a file system that all hosts share")
    root = Path(sweep.root).absolute()
    with _only_submitter(root):
        jobs = jobs_of(read_submissions(root))
        _note_gone(sweep, jobs)
        if wanted := [run for run in todo if run.name not in jobs]:
            _submit(submitit, root, sweep, wanted, options)
    return 0


def _submitit():
    try:
        import submitit
    except ImportError as error:
        raise SlurmError(f"--launcher=slurm needs submitit, which is not installed: {_INSTALL}") from error
    return submitit


def _note_gone(sweep: SweepDirectory, jobs: Mapping[str, Job]) -> None:
    """A run that waits or trains by its status, and has no job, was cancelled or killed."""
    for run in sweep.runs:
        status = read_status(sweep.run_dir(run.name))
        if status.launcher == "slurm" and status.state in ("waiting", "running") and run.name not in jobs:
            ended = status.ended_as(
                "interrupted", "SLURM has no job of it any more: cancelled, or killed with its host"
            )
            write_status(sweep.run_dir(run.name), ended)


def _submit(submitit, root: Path, sweep: SweepDirectory, runs: Sequence[SweepRun], options: SlurmOptions) -> Submission:
    """Submits runs as one array.

    Raises:
        SlurmError: SLURM refuses them.
    """
    from sft_jax.sweeps.launchers.slurm_job import RunJob

    before = read_submissions(root)
    submission = Submission(new_name(root.name), None, tuple(run.name for run in runs))
    write_submissions(root, [*before, submission])
    for run in runs:
        directory = sweep.run_dir(run.name)
        status = RunStatus("waiting", read_status(directory).attempts, launcher="slurm")
        write_status(directory, status)  # before it can run
    executor = submitit.SlurmExecutor(root / DIRECTORY, max_num_timeout=options.max_timeouts)
    executor.update_parameters(**options.parameters(submission.name))
    try:
        with submitit.helpers.clean_env():  # of the job in which this may run
            jobs = executor.submit_array([RunJob(str(root), run.name) for run in runs])
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        write_submissions(root, before)
        raise SlurmError(f"SLURM does not take the jobs: {error}") from error
    submission = dataclasses.replace(submission, job=jobs[0].job_id.partition("_")[0])
    write_submissions(root, [*before, submission])
    return submission
