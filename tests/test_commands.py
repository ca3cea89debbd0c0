"""The commands from outside: a mistake in a flag is one message that names it, and a code that is not 0."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def call(module, *arguments):
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True)


EVALUATE = ("sft_jax.evaluate", "--model=m", "--data=d", "--out=o")
TRAIN = ("sft_jax.train", "--config=configs/sft.py", "--workdir=never_made")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*TRAIN, "--config.lr=1"), "--config.lr=1: the config has no field 'lr'. config has: adapter, batch, "),
        ((*TRAIN[:1], "--config.seed=1", TRAIN[2]), "set after --config=FILE, for example --config=configs/sft.py"),
        ((*EVALUATE, "--reading.sub=x"), "--reading.split, --reading.streaming, --reading.subset"),
        ((*EVALUATE, "--config.data.reading.format=text"), "This command has no config: --reading.format"),
        ((*EVALUATE, "--n=1"), "--compare, --data, --examples, --examples_from"),
        ((*TRAIN, "--confg=x"), "Unknown command line flag 'confg'. Did you mean: config"),
        ((*TRAIN, "stray"), "unexpected argument 'stray'"),
        (("sft_jax.train", "--config=configs/sft.py:lorra", "--workdir=never_made"), "give ':full' or ':lora'"),
        (
            ("sft_jax.train", "--config=configs/none.py", "--workdir=never_made"),
            "configs there are: quickstart.py, sft.py",
        ),
        (("sft_jax.evaluate", "--model=m", "--data=d", "--out=o", "--scorer=best"), "exact_match|json_extraction"),
        (
            ("sft_jax.export", "--checkpoint=runs/none", "--out=never_made"),
            "'runs/none' is not a local file or directory",
        ),
        (("sft_jax.export", "--checkpoint=m", "--out=never_made", "--format=onnx"), "hf|merged|peft"),
        (("sft_jax.export", "--checkpoint=m", "--out=tests"), "--out=tests exists; give another directory, or --force"),
        (("sft_jax.export", "--checkpoint=m", "--out=tests", "--force"), "--force does not replace it"),
    ],
)
def test_a_mistake_is_one_message(arguments, message):
    done = call(*arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (ROOT / "never_made").exists()


def test_traceback_shows_where():
    done = call(*TRAIN, "--config.optimizr.betas=1", "--traceback")
    assert done.returncode != 0
    assert "Traceback" in done.stderr
