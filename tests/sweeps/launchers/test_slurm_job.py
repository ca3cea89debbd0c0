"""What a job does about signals, as submitit starts it; SLURM is a command that notes what it is asked."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from submitit.core.utils import DelayedSubmission, JobPaths

from sft_jax.runs.result import read_result
from sft_jax.sweeps.directory import claim_sweep
from sft_jax.sweeps.launchers.slurm_job import RunJob
from sft_jax.sweeps.status import read_status, write_status
from tests import tiny
from tests.sweeps.launchers.long_run import OVERRIDES, PATIENCE_SECONDS, steps, until

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
SCONTROL = """#!/bin/sh
echo "$@" >> {root}/asked
cat {root}/shown
"""


class Jobs:
    """Starts the job of a run, as the batch script does."""

    def __init__(self, root, sweep, name):
        self.root, self.sweep, self.name = root, sweep, name
        (root / "scontrol").write_text(SCONTROL.format(root=root))
        (root / "scontrol").chmod(stat.S_IRWXU)
        (root / "asked").write_text("")
        self.shows("PreemptTime=None")
        submission = DelayedSubmission(RunJob(str(sweep.root), name))
        submission.set_timeout(timeout_min=10_000, max_num_timeout=3)
        submission.dump(JobPaths(root, job_id="7").submitted_pickle)

    def shows(self, text):
        (self.root / "shown").write_text(f"JobId=7 JobName=x\n   JobState=RUNNING {text} Requeue=1\n")

    @property
    def asked(self):
        return (self.root / "asked").read_text().splitlines()

    def start(self):
        of_job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SUBMITIT_EXECUTOR": "slurm"}
        cache = {"JAX_COMPILATION_CACHE_DIR": str(self.root / "compilations")}
        path = {"PATH": f"{self.root}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        with (self.root / "log").open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-u", "-m", "submitit.core._submit", str(self.root)],
                env=os.environ | of_job | path | cache | {"JAX_PLATFORMS": "cpu"},
                stdout=log,
                stderr=log,
            )

    def trains_on(self, beyond):
        """Waits until a step after this one is logged."""
        until(lambda: any(step > beyond for step in steps(self.sweep.run_dir(self.name))), self.root)

    @property
    def status(self):
        return read_status(self.sweep.run_dir(self.name))


@pytest.fixture
def jobs(tmp_path):
    config = tiny.config(tmp_path, **OVERRIDES)
    stated = [{"optimizer.learning_rate": 1e-5}]
    sweep = claim_sweep(tmp_path / "sweep", sweep="x/sweep.py", config="configs/sft.py", base=config, stated=stated)
    (tmp_path / "slurm").mkdir()
    return Jobs(tmp_path / "slurm", sweep, sweep.runs[0].name)


def test_saved_requeued_continued_and_at_last_cancelled(jobs):
    running = jobs.start()
    jobs.trains_on(0)
    running.send_signal(signal.SIGUSR2)
    assert running.wait(PATIENCE_SECONDS) == 255  # as submitit leaves
    assert jobs.asked == ["requeue 7"]
    end = read_result(jobs.sweep.run_dir(jobs.name))
    assert (end.state, jobs.status.state) == ("interrupted", "waiting")

    running = jobs.start()
    jobs.trains_on(end.step)
    assert jobs.status.attempts == 2
    running.send_signal(signal.SIGTERM)
    assert running.wait(PATIENCE_SECONDS) == 1
    assert jobs.asked == ["requeue 7", "show job 7"]
    assert jobs.status.state == "interrupted"
    assert read_result(jobs.sweep.run_dir(jobs.name)).step > end.step


def test_sigterm_of_a_preemption_requeues_too(jobs):
    running = jobs.start()
    jobs.trains_on(0)
    jobs.shows("PreemptTime=2026-11-29T20:37:27")
    running.send_signal(signal.SIGTERM)
    assert running.wait(PATIENCE_SECONDS) == 255
    assert jobs.asked == ["show job 7", "requeue 7"]
    assert jobs.status.state == "waiting"


def test_usr2_before_the_first_step_requeues_too(jobs):
    running = jobs.start()
    until(lambda: jobs.status.state == "running", jobs.root)
    running.send_signal(signal.SIGUSR2)
    assert running.wait(PATIENCE_SECONDS) == 255
    assert jobs.asked == ["requeue 7"]
    assert (jobs.status.state, jobs.status.attempts) == ("waiting", 1)


def test_a_job_goes_back_when_one_of_its_processes_has_died(jobs, monkeypatch):
    """One of those that are left puts it back, so often and no more."""
    monkeypatch.setenv("PATH", f"{jobs.root}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    job, directory = RunJob(str(jobs.sweep.root), jobs.name, max_restarts=2), jobs.sweep.run_dir(jobs.name)

    def lost(process: int, noticed_by: int) -> None:
        monkeypatch.setenv("SLURM_PROCID", str(noticed_by))
        write_status(directory, jobs.status.begun("slurm"))
        job.without(process)

    lost(2, noticed_by=1)
    assert jobs.asked == []
    lost(2, noticed_by=0)
    assert (jobs.asked, jobs.status.state, jobs.status.lost) == (["requeue 7"], "waiting", 1)
    lost(0, noticed_by=1)
    assert (jobs.asked, jobs.status.state, jobs.status.lost) == (["requeue 7"] * 2, "waiting", 2)
    lost(1, noticed_by=0)
    assert (jobs.asked, jobs.status.state) == (["requeue 7"] * 2, "failed")
    assert "process 1 is gone, and --slurm_max_restarts=2 times it was so before" in jobs.status.error
