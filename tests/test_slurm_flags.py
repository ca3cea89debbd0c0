"""The flags of jobs are what sbatch takes, and belong to one launcher."""

import pytest
from absl import flags

from sft_jax import slurm_flags
from sft_jax.sweeps.launchers.slurm import SlurmOptions


@pytest.fixture
def given():
    """Sets flags as a command line does."""
    names = [name for name in flags.FLAGS if name.startswith("slurm_")] + ["wait"]
    flags.FLAGS.mark_as_parsed()

    def given(*arguments):
        flags.FLAGS(["program", *arguments])

    yield given
    for name in names:
        flags.FLAGS[name].unparse()


def test_defaults(given):
    given()
    assert slurm_flags.options() == SlurmOptions()
    slurm_flags.refuse()


def test_what_they_say(given):
    given(
        *("--slurm_partition=gpu", "--slurm_nodes=2", "--slurm_gpus=a100:4", "--slurm_mem=64GB", "--slurm_minutes=90"),
        *("--slurm_option=mail-type=END", "--slurm_option=exclusive", "--slurm_setup=module load cuda", "--wait"),
    )
    assert slurm_flags.options(stop_after=5) == SlurmOptions(
        partition="gpu",
        nodes=2,
        gpus="a100:4",
        mem="64GB",
        minutes=90,
        setup=("module load cuda",),
        more={"mail-type": "END", "exclusive": True},
        wait=True,
        stop_after=5,
    )


@pytest.mark.parametrize("flag", ["--slurm_partition=gpu", "--slurm_option=exclusive", "--wait", "--slurm_gpus=1"])
def test_another_launcher_refuses_them(given, flag):
    given(flag)
    with pytest.raises(ValueError, match=rf"{flag.partition('=')[0]}: not read here, it goes with --launcher=slurm"):
        slurm_flags.refuse()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--slurm_gpus=many", "expected a number, or kind:number"),
        ("--slurm_gpus=0", "expected a number, or kind:number"),
        ("--slurm_mem=64 GB", "expected a number with its unit"),
        ("--slurm_option=--exclusive", "without its dashes"),
        ("--slurm_option=mail-type=END\n#SBATCH", "without its dashes"),
        ("--slurm_option=time=30", "give --slurm_minutes in its place"),
        ("--slurm_option=output=x", "the launcher sets output itself"),
        ("--slurm_warning_seconds=3600", "ends before that"),
    ],
)
def test_what_sbatch_would_not_take(given, flag, message):
    given(flag)
    with pytest.raises(ValueError, match=message):
        slurm_flags.options()
