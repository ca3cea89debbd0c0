"""The SLURM launcher: the runs of a sweep as an array of jobs, submitted through submitit.

It comes back at once. Started again it shows how far the runs are, and submits those that are neither done nor in the
queue. A run is one job, on one host or on several with a process each (`slurm_job.py`).
"""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sft_jax.runs.result import PAUSED, read_result
from sft_jax.runs.workdir import is_remote, only_one
from sft_jax.sweeps.directory import LAUNCHING, SweepDirectory
from sft_jax.sweeps.hparams import not_failing, write_hparams
from sft_jax.sweeps.launchers.following import Following, MetricsTail
from sft_jax.sweeps.launchers.slurm_queue import (
    DIRECTORY,
    Job,
    SlurmError,
    Submission,
    check_there,
    jobs_of,
    new_name,
    read_submissions,
    write_submissions,
)
from sft_jax.sweeps.runs import SweepRun
from sft_jax.sweeps.status import RunStatus, read_status, write_status

_INSTALL = "pip install -r requirements-slurm.txt"
_OF_JOB = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")
_POLL_SECONDS = 10.0  # of asking SLURM
_TICK_SECONDS = 0.2


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
        max_restarts: how often a run of several hosts goes back because a process of it died.
        array_parallelism: so many runs at a time.
        setup: shell commands before the run starts, as `module load cuda`.
        more: options of sbatch beside these, by their names without `--`; True for one that has no value.
        wait: follow the runs to their end.
        stop_after: the step after which each run pauses, which is waited for; None: all go on to their end.
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
    max_restarts: int = 3
    array_parallelism: int = 256
    setup: tuple[str, ...] = ()
    more: Mapping[str, str | bool] = dataclasses.field(default_factory=dict)
    wait: bool = False
    stop_after: int | None = None

    def parameters(self, name: str) -> dict[str, Any]:
        """For submitit's SLURM executor, of jobs of this name."""
        step = [f"--cpus-per-task={self.cpus}"] if self.cpus else []  # srun does not take it from sbatch
        # Processes of one run end together by themselves, and need a moment to put the job back into the queue.
        step += ["--kill-on-bad-exit=0"] if self.nodes > 1 else []
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


def launch(
    sweep: SweepDirectory, todo: Sequence[SweepRun], options: SlurmOptions, console: Console | None = None
) -> int:
    """Submits the runs that are neither done nor in the queue, and shows all; with `wait` follows them to their end.

    Args:
        sweep: its directory, which all hosts share.
        todo: the runs; those that are done are left alone.
        options: what jobs ask for.
        console: where is shown what goes on; by default the terminal.

    Returns:
        exit status: 1 where it waited and a run is not done, nor paused; else 0.

    Raises:
        SlurmError: SLURM or submitit is not there, or does not take the jobs.
        WorkdirError: another launcher is at work there; a status, or what was noted of submissions, is damaged.
    """
    submitit = _submitit()
    check_there("srun", "sbatch", "squeue")
    if is_remote(sweep.root):
        raise SlurmError(f"{sweep.root}: with --launcher=slurm give a --workdir on a file system that all hosts share")
    root, console = Path(sweep.root).absolute(), console or Console()
    root.mkdir(parents=True, exist_ok=True)
    with only_one(sweep.root, LAUNCHING):
        jobs = jobs_of(read_submissions(root))
        _note_gone(sweep, jobs)
        todo = [run for run in todo if _state(sweep, run.name) != "finished"]
        wanted = [run for run in todo if run.name not in jobs]
        if wanted:
            submission = _submit(submitit, root, sweep, wanted, options)
            console.print(_submitted(submission, root), soft_wrap=True, highlight=False)
    if options.wait or options.stop_after is not None:
        try:
            _follow(sweep, [run.name for run in todo], root, options, console)
        except KeyboardInterrupt:
            console.print("The jobs stay in the queue; the same command goes on following them.")
            raise
    with not_failing(lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)):
        write_hparams(sweep.root)
    _show(sweep, jobs_of(read_submissions(root)), console)
    if not options.wait and options.stop_after is None:
        return 0
    return 0 if all(_is_through(sweep, run.name) for run in todo) else 1


def _submitit():
    try:
        import submitit
    except ImportError as error:
        if error.name != "submitit":
            raise
        raise SlurmError(f"--launcher=slurm: the package submitit is not installed: {_INSTALL}") from error
    return submitit


def _note_gone(sweep: SweepDirectory, jobs: Mapping[str, Job]) -> None:
    """A run that waits or trains by its status, and has no job, was cancelled or killed."""
    for run in sweep.runs:
        status = read_status(sweep.run_dir(run.name))
        expects_job = status.launcher == "slurm" and status.state in ("waiting", "running")
        if expects_job and run.name not in jobs:
            ended = status.ended_as(
                "interrupted", "SLURM has no job of it any more: cancelled, or killed with its host"
            )
            write_status(sweep.run_dir(run.name), ended)


def _state(sweep: SweepDirectory, name: str) -> str:
    return read_status(sweep.run_dir(name)).state


def _is_through(sweep: SweepDirectory, name: str) -> bool:
    """True where a run is done, or paused."""
    end = read_result(sweep.run_dir(name))
    return end is not None and (end.done or end.state == PAUSED)


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
        with _outside_of_jobs():
            jobs = executor.submit_array(
                [RunJob(str(root), run.name, options.stop_after, options.max_restarts) for run in runs]
            )
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        # What was noted stays: SLURM may have taken them, though sbatch failed.
        raise SlurmError(f"SLURM does not take the jobs: {error}") from error
    submission = dataclasses.replace(submission, job=jobs[0].job_id.partition("_")[0])
    write_submissions(root, [*before, submission])
    return submission


@contextlib.contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hides the job in which this runs, if it does: sbatch would take over what that one asked for."""
    hidden = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_OF_JOB) and name != "SLURM_CONF" and "SLURM_JOB_ID" in os.environ
    }
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def _submitted(submission: Submission, root: Path) -> str:
    """What is said of a submission."""
    runs = "1 run" if len(submission.runs) == 1 else f"{len(submission.runs)} runs"
    return (
        f"Submitted {runs} as job {submission.job}; what SLURM says of them is in {root / DIRECTORY}.\n"
        f"To end them: scancel {submission.job}. The same command again shows how far they are, and submits what is "
        "neither done nor in the queue."
    )


def _show(sweep: SweepDirectory, jobs: Mapping[str, Job], console: Console) -> None:
    """How far each run is: what SLURM says where it has a job, else its status."""
    table = Table("run", "state", "step", box=None, pad_edge=False)
    for run in sweep.runs:
        status = read_status(sweep.run_dir(run.name))
        state = f"{status.state}: {status.error.strip().splitlines()[-1]}" if status.error else status.state
        if run.name in jobs and status.state != "finished":
            state = str(jobs[run.name])
        step, _ = MetricsTail(Path(sweep.run_dir(run.name))).latest()
        table.add_row(Text(run.name, overflow="fold"), Text(state), Text(str(step)))
    console.print(table)


def _follow(sweep: SweepDirectory, names: list[str], root: Path, options: SlurmOptions, console: Console) -> None:
    """Shows what becomes of these runs until none of them has a job."""
    shown: dict[str, Literal["waiting", "running"]] = dict.fromkeys(names, "waiting")
    asked = -math.inf
    at_a_time = min(options.array_parallelism, max(1, len(names)))
    with Following(root, names, 0, at_a_time, console) as following:
        while True:
            if time.monotonic() - asked >= _POLL_SECONDS:
                asked, jobs = time.monotonic(), jobs_of(read_submissions(root))
                _note_gone(sweep, jobs)
                _tell(following, sweep, jobs, shown)
                if not shown:
                    return
            following.tick()
            time.sleep(_TICK_SECONDS)


def _tell(
    following: Following,
    sweep: SweepDirectory,
    jobs: Mapping[str, Job],
    shown: dict[str, Literal["waiting", "running"]],
) -> None:
    """Tells the display what has changed since it was told last.

    Args:
        following: the display.
        sweep: with what runs say of themselves.
        jobs: that SLURM has.
        shown: how the display shows runs that it does not show as ended; brought up to date.
    """
    for name, state in list(shown.items()):
        job = jobs.get(name)
        waits, runs = job is not None and job.state == "PENDING", job is not None and job.state == "RUNNING"
        if state == "waiting" and (job is None or runs):
            following.started(name)
            shown[name] = state = "running"
        if state == "running" and (job is None or waits):
            status, end = (read(sweep.run_dir(name)) for read in (read_status, read_result))
            following.ended(name, status.state if end is None else end.state, status.error, again=waits)
            shown[name] = "waiting"
        if job is None:
            del shown[name]
