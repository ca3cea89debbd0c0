"""What a job of SLURM does: it trains one run of a sweep, on all of its hosts.

SLURM tells a job that its time is nearly over, or that others need its place: by USR2 (`sbatch --signal`), or by
SIGTERM where it is preempted. Then the run is saved after the step that it is in, and the job is put back into the
queue, where it goes on. submitit would leave at once on USR2 and ignore SIGTERM: its handlers are replaced while the
run trains, and the one for USR2 is asked to requeue afterwards.
"""

import contextlib
import dataclasses
import os
import re
import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType

from sft_jax.compilations import keep_compilations
from sft_jax.leaving import leave
from sft_jax.peers import before_ending
from sft_jax.runs.result import FINISHED, INTERRUPTED, PAUSED, STOPPED_EARLY, read_result
from sft_jax.sweeps.directory import open_sweep
from sft_jax.sweeps.executing import execute
from sft_jax.sweeps.hparams import show_session
from sft_jax.sweeps.launchers.slurm_queue import ask
from sft_jax.sweeps.shared import Shared
from sft_jax.sweeps.status import read_status, write_status


@dataclasses.dataclass(frozen=True)
class RunJob:
    """The job of one run; submitit pickles it, and calls it on each of the job's hosts.

    Attributes:
        root: of the sweep.
        name: of the run.
        stop_after: the step after which it pauses; None: it goes on to its end.
        max_restarts: how often it goes back into the queue because one of its processes died.
    """

    root: str
    name: str
    stop_after: int | None = None
    max_restarts: int = 3

    def __call__(self) -> str:
        """Trains the run, or goes on with it.

        Returns:
            how it ended, where it is done or paused; `waiting` where the first host puts the job back into the queue.

        Raises:
            SystemExit: it is not done: it failed, it was cancelled, or the job is in the queue again.
            UncompletedJobError: its time was over too often.
        """
        state = INTERRUPTED
        # `Notice` raises SystemExit outside of the loop.
        with Notice() as notice, before_ending(self.without), contextlib.suppress(SystemExit):
            state = self._train()
        if state in (FINISHED, PAUSED, STOPPED_EARLY):
            return state
        if notice.came or (state == INTERRUPTED and _is_preempted()):
            if int(os.environ.get("SLURM_PROCID", 0)) > 0:
                return "waiting"  # an error here would end the process that puts the job back
            self._requeue(notice)
        sys.exit(f"{self.name}: {state}")

    def checkpoint(self):
        """What submitit calls when the requeued job starts; the run knows by its directory how far it is."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _train(self) -> str:
        if int(os.environ.get("SLURM_STEP_NUM_NODES", 1)) > 1:
            from sft_jax.joining import join

            join()
        sweep = open_sweep(self.root)
        (run,) = (run for run in sweep.runs if run.name == self.name)
        directory = sweep.run_dir(self.name)
        before = read_result(directory)
        if before is not None and before.done:
            return before.state
        keep_compilations()
        end = execute(
            run,
            directory,
            Shared(),
            launcher="slurm",
            stop_after=self.stop_after,
            on_start=lambda total_steps: show_session(self.root, self.name),  # it is listed while it runs
        )
        show_session(self.root, self.name)
        return end.state

    def without(self, process: int) -> None:
        """Puts the job back into the queue, because a process of it is gone; one of those that are left does.

        Args:
            process: that is gone.
        """
        if int(os.environ.get("SLURM_PROCID", 0)) != (1 if process == 0 else 0):
            return
        directory = open_sweep(self.root).run_dir(self.name)
        status = read_status(directory)
        if status.lost >= self.max_restarts:
            error = f"process {process} is gone, and --slurm_max_restarts={self.max_restarts} times it was so before"
            write_status(directory, status.ended_as("failed", error))
            return
        lost, job = status.lost + 1, os.environ["SLURM_JOB_ID"]
        write_status(directory, dataclasses.replace(status, state="waiting", lost=lost))
        sys.stderr.write(f"Job {job} goes back into the queue ({lost} of {self.max_restarts}).\n")
        ask("scontrol", "requeue", job)

    def _requeue(self, notice: "Notice") -> None:
        """Puts the job back into the queue, which ends this process."""
        directory = open_sweep(self.root).run_dir(self.name)
        status = read_status(directory)
        write_status(directory, dataclasses.replace(status, state="waiting"))
        try:
            notice.requeue()
        except Exception as error:
            write_status(directory, dataclasses.replace(status, error=str(error)))
            raise


class Notice:
    """A context in which USR2 asks to save and leave, as SIGTERM does.

    Attributes:
        came: whether USR2 was received: the job shall go on later.
    """

    def __init__(self):
        self.came = False
        self._signal = getattr(signal, "SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2"))
        self._submitit: Callable[[int, FrameType | None], None] = signal.getsignal(self._signal)

    def __enter__(self) -> "Notice":
        signal.signal(signal.SIGTERM, leave)
        signal.signal(self._signal, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in (self._signal, signal.SIGTERM):  # SLURM sends what is left to say while the job ends
            signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        os.kill(os.getpid(), signal.SIGTERM)  # whoever listens for it: the loop of training, jax, or `leave`

    def requeue(self) -> None:
        """Has submitit put the job back into the queue, which counts how often its time was over.

        Raises:
            SystemExit: it is done.
            UncompletedJobError: its time was over too often.
        """
        self._submitit(self._signal, None)


def _is_preempted() -> bool:
    """True where SLURM ends the job for another one; not where it was cancelled."""
    said = re.search(r"\bPreemptTime=(\S+)", ask("scontrol", "show", "job", os.environ["SLURM_JOB_ID"]))
    return said is not None and said[1] not in ("None", "Unknown")
