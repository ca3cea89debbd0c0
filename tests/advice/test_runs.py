"""Advice of runs that stop: what it names is given, and the run goes through."""

import json
import os
import re
import signal

import pytest

import tests.training.poison  # noqa: F401  registers its objectives
from sft_jax.data.plan import PackPlan
from sft_jax.runs.workdir import WorkdirError
from sft_jax.training import run
from sft_jax.training.effect import NoEffectError
from sft_jax.training.recorder import DivergedError
from tests import tiny
from tests.training import moments

QUIET = {
    "data.held_out": "",
    "checkpoint.best_metric": "",
    "checkpoint.every": "100 steps",
    "optimizer.warmup": "0 steps",
    "duration": "4 steps",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    made = tmp_path_factory.mktemp("runs")
    tiny.config(made)
    return made


def config(root, **changes):
    return tiny.config(root, **QUIET | changes)


EFFECT, RECORDER = "sft_jax/training/effect.py", "sft_jax/training/recorder.py"
RATE, SKIPPED = "optimizer.learning_rate", "optimizer.max_skipped_in_a_row"
STOPPED = {  # (file, part of its advice) -> (error, what was given, how what is to be changed, another value)
    (EFFECT, "steps were skipped: loss or gradient was not finite. Look"): (
        *(NoEffectError, {RATE: 1e38}),
        ("lower", RATE, 1e-2),
    ),
    (EFFECT, "steps no trained array has had an update, though there were"): (
        *(NoEffectError, {RATE: 1e-42}),
        ("Raise", RATE, 1e-2),
    ),
    (RECORDER, ". Look at those examples; lower"): (
        *(DivergedError, {RATE: 1e38, SKIPPED: 2}),
        ("lower", RATE, 1e-2),
    ),
    (RECORDER, "--config.optimizer.max_skipped_in_a_row, with another"): (
        *(DivergedError, {"objective.name": "poisoned", SKIPPED: 1}),
        ("raise", SKIPPED, 100),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("key", STOPPED, ids=[": ".join(key) for key in STOPPED])
def test_what_stopped_goes_through_with_the_value_that_is_advised(key, root, tmp_path):
    error_type, given, (way, name, value) = STOPPED[key]
    with pytest.raises(error_type, match="with another --workdir") as error:
        run(config(root, **given), tmp_path / "run")
    assert f"{way} --config.{name}" in str(error.value)
    with pytest.raises(WorkdirError, match=f"different config:\n  {name}"):
        run(config(root, **given | {name: value}), tmp_path / "run")
    assert run(config(root, **given | {name: value}), tmp_path / "another").step == 4
    if "skipped_steps.jsonl" in str(error.value):
        rows = (root / "train.jsonl").read_text().splitlines()
        noted = [json.loads(line) for line in (tmp_path / "run" / "skipped_steps.jsonl").read_text().splitlines()]
        names = [name for step in noted for name in step["example_ids"]]
        assert names
        assert all(json.loads(rows[int(name.removeprefix("train.jsonl:")) - 1]) for name in names)


PACKING = ("sft_jax/training/trial.py", ": the code that packs has changed. Give another --workdir,")


def test_a_run_of_code_that_packs_otherwise(root, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        moments.at("dispatch", 2, lambda: os.kill(os.getpid(), signal.SIGTERM), patch.setattr)
        stopped = run(config(root), tmp_path / "run")
    assert 0 < stopped.step < 4
    with monkeypatch.context() as patch:
        counts = PackPlan.cumulative_counts
        patch.setattr(PackPlan, "cumulative_counts", lambda plan, step: counts(plan, step) | {"examples": -1})
        with pytest.raises(WorkdirError, match=r"Give another --workdir, or the code that started the run"):
            run(config(root), tmp_path / "run")
        assert run(config(root), tmp_path / "another").step == 4
    assert run(config(root), tmp_path / "run").step == 4


BEST = (
    "sft_jax/training/held_out.py",
    "--config.checkpoint.best_metric={name} is not measured; there are {', '.join(measured)}",
)


def test_the_best_checkpoint_is_chosen_by_what_an_evaluator_gives(root, tmp_path):
    evaluators = {"mine": lambda model, state: {"metric": 1.0}}
    with pytest.raises(ValueError, match="is not measured; there are ") as error:
        run(config(root, **{"checkpoint.best_metric": "mine/other"}), tmp_path / "run", evaluators)
    (known,) = re.search(r"there are (.*)\. Give one of them, or ''", str(error.value))[1].split(", ")
    for number, name in enumerate((known, "")):
        done = run(config(root, **{"checkpoint.best_metric": name}), tmp_path / str(number), evaluators)
        assert done.metrics == {"mine/metric": 1.0}


FOLLOWED = {*STOPPED, PACKING, BEST}
