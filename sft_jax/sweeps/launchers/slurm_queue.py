"""What SLURM has of a sweep: which jobs were submitted for which runs, and which of them it still knows.

Submissions are noted in the sweep's directory before they are made, each under a job name that no other has. So
whatever becomes of the process that submits, the next start finds its jobs in the queue.
"""

import dataclasses
import json
import re
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

from sft_jax.runs.workdir import WorkdirError, write_whole

DIRECTORY = "slurm"  # in the sweep's: submissions, batch scripts, and what SLURM wrote of each job
FILE = "submissions.json"
_SEPARATOR = "|"
_ANSWER_SECONDS = 120


class SlurmError(RuntimeError):
    """SLURM does not do what it is asked for."""


@dataclasses.dataclass(frozen=True)
class Submission:
    """Runs that were submitted together.

    Attributes:
        name: of the job, or of the array of jobs; no other submission has it.
        job: the number that SLURM gave it; None where the process that submitted it did not live to learn it.
        runs: by their place in the array.
    """

    name: str
    job: str | None
    runs: tuple[str, ...]

    def run_of(self, job: str) -> str | None:
        """The run of one of its jobs, `12` or `12_3`."""
        place = int(job.partition("_")[2] or 0)
        return self.runs[place] if place < len(self.runs) else None


@dataclasses.dataclass(frozen=True)
class Job:
    """A job in SLURM's queue.

    Attributes:
        id: its number, with its place where it is one of an array.
        state: in SLURM's words, as PENDING or RUNNING.
        reason: why it waits; `None` for nothing.
    """

    id: str
    state: str
    reason: str

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.state == "PENDING" and self.reason != "None" else ""
        return f"{self.state.lower()}{why}, job {self.id}"


def new_name(sweep: str) -> str:
    """A job name with that of the sweep in it."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', sweep)}-{uuid.uuid4().hex[:8]}"


def write_submissions(root: Path, submissions: Sequence[Submission]) -> None:
    """Notes what was submitted, and what is about to be."""
    (root / DIRECTORY).mkdir(parents=True, exist_ok=True)
    entries = [dataclasses.asdict(each) for each in submissions]
    write_whole(root / DIRECTORY / FILE, json.dumps(entries, indent=2) + "\n")


def read_submissions(root: Path) -> list[Submission]:
    """All submissions of a sweep, the oldest first.

    Raises:
        WorkdirError: the file is damaged.
    """
    path = root / DIRECTORY / FILE
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text())
        return [Submission(each["name"], each["job"], tuple(each["runs"])) for each in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise WorkdirError(
            f"{path} is damaged ({type(error).__name__}: {error}). Put it back from a copy; or, when squeue shows no "
            "jobs of this sweep, remove it"
        ) from error


def jobs_of(submissions: Iterable[Submission]) -> dict[str, Job]:
    """The jobs that SLURM still has, waiting, running or ending, by their runs.

    Raises:
        SlurmError: it does not answer.
    """
    by_name = {submission.name: submission for submission in submissions}
    if not by_name:
        return {}
    form = _SEPARATOR.join(("%i", "%j", "%T", "%r"))
    answer = ask("squeue", "--noheader", "--array", f"--format={form}", f"--name={','.join(by_name)}")
    found = {}
    for line in answer.splitlines():
        job, name, state, reason = line.split(_SEPARATOR, 3)
        found[by_name[name].run_of(job)] = Job(job, state, reason)
    found.pop(None, None)
    return found


def check_there(*commands: str) -> None:
    """Checks that commands of SLURM can be started.

    Raises:
        SlurmError: one is not there.
    """
    for command in commands:
        if shutil.which(command) is None:
            raise SlurmError(
                f"there is no {command} on {socket.gethostname()}. With --launcher=slurm, SLURM's commands are needed "
                "where the sweep is started and in its jobs, in containers too; --launcher=local needs no SLURM"
            )


def ask(*command: str) -> str:
    """What a command of SLURM answers.

    Raises:
        SlurmError: it is not there, fails, or takes longer than two minutes.
    """
    check_there(command[0])
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command[0]} did not answer within {_ANSWER_SECONDS} s; start again later") from error
    if done.returncode:
        raise SlurmError(f"{command[0]} failed: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return done.stdout
