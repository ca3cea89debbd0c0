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
PLAN_FOR = ("sft_jax.plan", "--config=configs/sft.py")
TRAIN = ("sft_jax.train", "--config=configs/sft.py", "--workdir=never_made")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*TRAIN, "--config.lr=1"), "--config.lr=1: the config has no field 'lr'. config has: adapter, batch, "),
        ((*TRAIN[:1], "--config.seed=1", TRAIN[2]), "set after --config=FILE, for example --config=configs/sft.py"),
        ((*EVALUATE, "--reading.sub=x"), "--reading.split, --reading.streaming, --reading.subset"),
        ((*EVALUATE, "--config.data.reading.format=text"), "This command has no config: --reading.format"),
        ((*EVALUATE, "--n=1"), "--compare, --config, --corpus, --data, --development, --examples, --examples_from"),
        ((*TRAIN, "--confg=x"), "Unknown command line flag 'confg'. Did you mean: config"),
        (
            (*TRAIN, "--noconfig.ema.evaluate=true"),
            "error in the flags: --noconfig.ema.evaluate=true does not take an argument",
        ),
        ((*TRAIN, "stray"), "unexpected argument 'stray'"),
        (("sft_jax.train", "--config=configs/sft.py:lorra", "--workdir=never_made"), "give ':full' or ':lora'"),
        (
            ("sft_jax.train", "--config=configs/none.py", "--workdir=never_made"),
            "In configs there are: continued.py, distillation.py, llama3.py, mixtral.py, preference.py, quickstart.py, "
            "reward_model.py, rlvr.py, sft.py, short_titles.py, smollm2.py",
        ),
        (
            ("sft_jax.evaluate", "--model=m", "--data=d", "--out=o", "--scorer=best"),
            "no scorer named 'best'; there are bleu, chrf, exact_match",
        ),
        (
            ("sft_jax.export", "--checkpoint=runs/none", "--out=never_made"),
            "'runs/none' is not a local file or directory",
        ),
        ((*PLAN_FOR, "--topology=v9:4x4"), "--topology=v9:4x4: no hardware is called 'v9'. There are v4, v5e, v5p"),
        ((*PLAN_FOR, "--topology=h100:12"), "hosts have 8 of these; give fewer, or a multiple of that"),
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


PREVIEW = ("sft_jax.preview", "--config=configs/sft.py")
GENERATE = ("sft_jax.generate", "--model=m")
PLAN = (*PLAN_FOR, "--topology=cpu:2")
EXPORT = ("sft_jax.export", "--checkpoint=m", "--out=never_made")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "unread"),
    [
        ((*EVALUATE, "--examples_from=t", "--examples_split=x"), "--examples_from, --examples_split"),
        ((*EVALUATE, "--top_k=5"), "--top_k"),
        ((*EVALUATE, "--methods=few_shot,rag", "--instruction=x", "--development=d"), "--instruction, --development"),
        ((*EVALUATE, "--passages=5", "--search=dense"), "--passages, --search"),
        ((*EVALUATE, "--max_regression=0.1"), "--max_regression"),
        ((*EVALUATE, "--num_processes=2"), "--num_processes"),
        ((*GENERATE, "--top_p=0.5"), "--top_p"),
        ((*GENERATE, "--prompt=a", "--reading.split=test", "--reading.system=b"), "--reading.split, --reading.system"),
        ((*GENERATE, "--out=never_made", "--batch_size=4"), "--out, --batch_size"),
        ((*GENERATE, "--samples=2", "--keep=best", "--scorer=numeric"), "--samples, --scorer, --keep"),
        ((*GENERATE, "--prompts=p", "--scorer_options={}", "--match_thinking"), "--scorer_options, --match_thinking"),
        ((*GENERATE, "--prompts=p", "--scorer=numeric", "--keep_above=0.5"), "--keep_above"),
        ((*PREVIEW, "--rows=10"), "--rows"),
        ((*PREVIEW, "--force"), "--force"),
        ((*PREVIEW, "--process_id=0"), "--process_id"),
        ((*PLAN, "--csv=x"), "--csv"),
        ((*PLAN, "--data", "--tokens=1e6"), "--tokens"),
        ((*PLAN, "--data", "--supervised_share=0.5"), "--supervised_share"),
        ((*EXPORT, "--format=peft", "--max_shard_gb=1"), "--max_shard_gb"),
        ((*TRAIN, "--coordinator=localhost:1"), "--coordinator"),
    ],
)
def test_no_flag_is_accepted_and_ignored(arguments, unread):
    done = call(*arguments)
    assert done.returncode == 1
    needs = "a plan without --data; leave it out" if arguments[: len(PLAN)] == PLAN and "--data" in arguments else "--"
    assert done.stderr.startswith(f"error: {unread}: not read here, it goes with {needs}"), done.stderr
    assert not (ROOT / "never_made").exists()


@pytest.mark.parametrize("command", [PREVIEW, GENERATE, EXPORT, PLAN])
def test_commands_of_one_process_refuse_to_be_one_of_several(command):
    done = call(*command, "--distributed")
    assert done.returncode == 1
    assert done.stderr.startswith("error: --distributed: this command runs in one process")


def test_held_out_rows_of_an_evaluation_have_a_split_like_others():
    """There are no other rows, so there is no flag of a split of their own."""
    done = call(*EVALUATE, "--reading.held_out_split=test")
    assert done.returncode == 1
    assert "Unknown command line flag 'reading.held_out_split'. Did you mean: reading.split." in done.stderr


def call_main(body, *arguments):
    """A command whose `main` is `body`."""
    script = f"import sys\nfrom sft_jax import commands\ndef main(_):\n    {body}\ncommands.run(main)\n"
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("body", "code", "shown"),
    [
        ("open('/nowhere/at.all')", 1, "error: /nowhere/at.all: No such file or directory\n"),
        ("open('/')", 1, "error: /: Is a directory\n"),
        ("import json; json.loads('{')", 1, "error: Expecting property name enclosed in double quotes"),
        ("raise KeyboardInterrupt", 130, "\ninterrupted\n"),
    ],
)
def test_errors_of_libraries_are_one_line(body, code, shown):
    done = call_main(body)
    assert done.returncode == code
    assert done.stderr.startswith(shown)
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2


@pytest.mark.parametrize("body", ["{}['key']", "None.attribute", "assert not main", "open('/nowhere', 'no mode')"])
def test_a_fault_in_the_code_shows_where(body):
    done = call_main(body)
    assert done.returncode == 1
    assert "Traceback" in done.stderr or "error: " in done.stderr
    assert ("Traceback" in done.stderr) == ("open" not in body)


def test_a_full_disk_is_one_line():
    """However many threads of orbax log it first, each with its traceback."""
    thread = "try:\n    1 / 0\nexcept ZeroDivisionError:\n    logging.exception('thread')"
    log = f"from absl import logging; exec(compile({thread!r}, '/site/orbax/future.py', 'exec'))"
    full = "raise OSError(28, 'No space left on device', '/disk/x')"
    done = call_main(f"{log}\n    {full}")
    assert done.stderr.startswith("error: /disk/x: No space left on device. Free some space and start the same command")
    assert len(done.stderr.splitlines()) == 2
    assert "ZeroDivisionError" in call_main(f"{log}\n    {full}", "--traceback").stderr


def test_traceback_of_a_librarys_error():
    assert "Traceback" in call_main("open('/nowhere')", "--traceback").stderr


def test_interrupted_while_modules_are_imported():
    listening = (
        "import os, signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"  # as in a terminal
    )
    script = f"{listening}from sft_jax import commands\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "\ninterrupted\n")


def test_traceback_shows_where():
    done = call(*TRAIN, "--config.optimizr.betas=1", "--traceback")
    assert done.returncode != 0
    assert "Traceback" in done.stderr
