"""What is submitted, what sbatch is asked for, and what is found again; commands only say what SLURM would."""

import dataclasses
import io
import json
import os
import stat
import sys
from pathlib import Path

import pytest
from etils import epath
from ml_collections import ConfigDict
from rich.console import Console

from sft_jax.runs.workdir import WorkdirError, only_one
from sft_jax.sweeps.directory import SweepDirectory
from sft_jax.sweeps.launchers.slurm import SlurmOptions, launch
from sft_jax.sweeps.launchers.slurm_queue import Job, SlurmError, Submission, jobs_of, read_submissions
from sft_jax.sweeps.runs import SweepRun
from sft_jax.sweeps.status import RunStatus, read_status, write_status

# sbatch keeps the script, and says what {said} has, once; squeue answers with the file {queue}.
SBATCH = """#!/bin/sh
cp "$1" {root}/script.$(ls {root} | grep -c script)
env > {root}/environment
cat {root}/said && test ! -e {root}/refuses
"""
SQUEUE = """#!/bin/sh
echo "$@" >> {root}/asked
test ! -e {root}/down || {{ echo "Unable to contact slurm controller" >&2; exit 1; }}
cat {root}/queue
"""


class Fake:
    """Commands of SLURM, in a directory of the path, and what they were asked."""

    def __init__(self, root):
        self.root = root
        for name, text in {"sbatch": SBATCH, "squeue": SQUEUE, "srun": "#!/bin/sh\n"}.items():
            (root / name).write_text(text.format(root=root))
            (root / name).chmod(stat.S_IRWXU)
        (root / "queue").write_text("")
        self.answers("Submitted batch job 7")

    def answers(self, said, refuses=False):
        (self.root / "said").write_text(said + "\n")
        (self.root / "refuses").write_text("") if refuses else (self.root / "refuses").unlink(missing_ok=True)

    def has(self, *lines):
        (self.root / "queue").write_text("".join(f"{line}\n" for line in lines))

    @property
    def scripts(self):
        return [path.read_text() for path in sorted(self.root.glob("script.*"))]


@pytest.fixture
def fake(tmp_path, monkeypatch):
    root = tmp_path / "bin"
    root.mkdir()
    monkeypatch.setenv("PATH", str(root), prepend=os.pathsep)
    return Fake(root)


@pytest.fixture
def sweep(tmp_path):
    runs = [SweepRun(f"seed={seed}-0000000{seed}", {"seed": seed}, ConfigDict()) for seed in range(3)]
    sweep = SweepDirectory(epath.Path(tmp_path) / "my sweep", "x/sweep.py", "configs/sft.py", ConfigDict(), runs)
    sweep.write()
    return sweep


def start(sweep, options=SlurmOptions(), todo=None):  # noqa: B008
    console = Console(file=io.StringIO(), width=200)
    return launch(sweep, sweep.runs if todo is None else todo, options, console), console.file.getvalue()


def noted(sweep):
    return read_submissions(Path(sweep.root))


def test_runs_are_submitted_as_one_array_and_noted(fake, sweep):
    status, said = start(sweep, SlurmOptions(array_parallelism=2))
    assert status == 0
    assert "Submitted 3 runs as job 7" in said
    assert "scancel 7" in said
    (script,) = fake.scripts
    assert "#SBATCH --array=0-2%2" in script
    (submission,) = noted(sweep)
    assert (submission.job, submission.runs) == ("7", tuple(run.name for run in sweep.runs))
    assert f"#SBATCH --job-name={submission.name}" in script
    assert submission.name.startswith("my-sweep-")
    assert [read_status(sweep.run_dir(run.name)) for run in sweep.runs] == [RunStatus("waiting", launcher="slurm")] * 3


def test_a_second_start_submits_what_is_neither_done_nor_in_the_queue(fake, sweep):
    start(sweep)
    (first,) = noted(sweep)
    fake.has(f"7_0|{first.name}|RUNNING|None", f"7_2|{first.name}|PENDING|Priority")
    fake.answers("Submitted batch job 8")
    said = start(sweep)[1]
    assert "Submitted 1 run as job 8" in said
    assert "running, job 7_0" in said
    assert "pending (Priority), job 7_2" in said
    assert [each.runs for each in noted(sweep)] == [first.runs, (sweep.runs[1].name,)]
    assert "--array" not in fake.scripts[1]

    second = noted(sweep)[1]
    fake.has(
        f"7_0|{first.name}|RUNNING|None",
        f"7_2|{first.name}|PENDING|Priority",
        f"8|{second.name}|COMPLETING|None",
    )
    assert "Submitted" not in start(sweep)[1]
    assert len(fake.scripts) == 2
    assert f"--name={first.name},{second.name}" in (fake.root / "asked").read_text().splitlines()[-1]


def test_a_run_without_a_job_was_interrupted(fake, sweep):
    start(sweep)
    write_status(sweep.run_dir(sweep.runs[0].name), RunStatus("running", 1, 12, "elsewhere", "slurm"))
    said = start(sweep, todo=[])[1]
    for run in sweep.runs:
        status = read_status(sweep.run_dir(run.name))
        assert status.state == "interrupted"
        assert "SLURM has no job of it" in status.error
        assert "interrupted: SLURM has no job" in said


def test_a_paused_run_and_one_of_another_launcher_expect_no_job(fake, sweep):
    paused = RunStatus("running", 1, 12, "elsewhere", "slurm").ended_as("paused")
    other = RunStatus("running", 1, 12, "elsewhere", "local")
    write_status(sweep.run_dir(sweep.runs[0].name), paused)
    write_status(sweep.run_dir(sweep.runs[1].name), other)
    start(sweep, todo=[])
    assert [read_status(sweep.run_dir(run.name)) for run in sweep.runs] == [paused, other, RunStatus()]


def test_jobs_are_found_though_sbatch_was_not_heard(fake, sweep):
    """It fails, and SLURM has taken the jobs all the same; or the process that submits is killed."""
    fake.answers("sbatch: error: Batch job submission failed: Socket timed out", refuses=True)
    with pytest.raises(SlurmError, match="does not take the jobs"):
        start(sweep)
    (submission,) = noted(sweep)
    assert submission.job is None
    fake.has(*(f"9_{i}|{submission.name}|PENDING|Priority" for i in range(3)))
    fake.answers("Submitted batch job 10")
    assert "Submitted" not in start(sweep)[1]
    fake.has()
    assert "Submitted 3 runs as job 10" in start(sweep)[1]


def test_what_jobs_ask_for(fake, sweep):
    options = SlurmOptions(
        partition="gpu",
        account="lab",
        qos="high",
        constraint="a100|h100",
        nodes=2,
        gpus="a100:4",
        cpus=16,
        mem="64GB",
        minutes=90,
        warning_seconds=300,
        setup=("module load cuda",),
        more={"mail-type": "END", "exclusive": True},
    )
    start(sweep, options)
    (script,) = fake.scripts
    asked = {line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert asked >= {
        *("partition=gpu", "account=lab", "qos=high", "constraint='a100|h100'", "nodes=2", "ntasks-per-node=1"),
        *("gpus-per-node=a100:4", "cpus-per-task=16", "mem=64GB", "time=90", "signal=USR2@300", "requeue"),
        *("mail-type=END", "exclusive"),
    }
    (srun,) = (line for line in script.splitlines() if line.startswith("srun"))
    assert "--cpus-per-task=16" in srun
    assert "--kill-on-bad-exit=0" in srun
    assert script.index("module load cuda") < script.index(srun)


def test_what_is_not_asked_for_is_left_to_the_cluster(fake, sweep):
    start(sweep)
    (script,) = fake.scripts
    for name in ("partition", "account", "qos", "constraint", "gpus", "cpus", "mem", "kill-on-bad-exit"):
        assert f"--{name}" not in script


def test_inside_a_job_sbatch_does_not_see_that_job(fake, sweep, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", "/etc/other.conf")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "5")
    start(sweep)
    assert "SLURM_MEM_PER_CPU=5" in (fake.root / "environment").read_text()
    monkeypatch.setenv("SLURM_JOB_ID", "3")
    start(sweep)
    environment = (fake.root / "environment").read_text()
    assert "SLURM_MEM_PER_CPU" not in environment
    assert "SLURM_CONF=/etc/other.conf" in environment
    assert os.environ["SLURM_MEM_PER_CPU"] == "5"


def test_where_slurm_does_not_answer_nothing_is_submitted(fake, sweep):
    start(sweep)
    (fake.root / "down").write_text("")
    with pytest.raises(SlurmError, match="squeue failed: Unable to contact slurm controller"):
        start(sweep)
    assert len(fake.scripts) == 1


def test_without_slurm_or_submitit_it_says_what_to_do(sweep, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmError, match=r"there is no srun on .*--launcher=local"):
        start(sweep)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(SlurmError, match=r"submitit is not installed: pip install -r requirements-slurm\.txt"):
        start(sweep)
    assert not (sweep.root / "slurm").exists()


def test_a_bucket_is_left_for_a_file_system_as_advised(fake, sweep):
    in_bucket = dataclasses.replace(sweep, root=epath.Path("gs://bucket/sweep"))
    with pytest.raises(SlurmError, match=r"^gs://bucket/sweep: .* give a --workdir on a file system that all hosts sh"):
        start(in_bucket)
    assert not fake.scripts
    assert "Submitted 3 runs as job 7" in start(sweep)[1]


def test_one_launcher_at_a_time(fake, sweep):
    with only_one(sweep.root, "launcher is at work"), pytest.raises(WorkdirError, match="another launcher is at work"):
        start(sweep)


@pytest.mark.parametrize("text", ["{", "[1]", '[{"name": "a", "job": "1"}]'])
def test_damaged_notes_are_named(fake, sweep, text):
    start(sweep)
    path = sweep.root / "slurm" / "submissions.json"
    path.write_text(text)
    with pytest.raises(WorkdirError, match=r"submissions\.json is damaged"):
        start(sweep)
    assert len(fake.scripts) == 1


def test_jobs_by_runs(fake):
    fake.has("12|one|RUNNING|None", "13_1|two|PENDING|Resources", "13_5|two|PENDING|Resources")
    found = jobs_of([Submission("one", None, ("a",)), Submission("two", "13", ("b", "c"))])
    assert found == {"a": Job("12", "RUNNING", "None"), "c": Job("13_1", "PENDING", "Resources")}
    assert jobs_of([]) == {}


def test_notes_are_readable(fake, sweep):
    start(sweep)
    (entry,) = json.loads((sweep.root / "slurm" / "submissions.json").read_text())
    assert entry.keys() == {"name", "job", "runs"}
