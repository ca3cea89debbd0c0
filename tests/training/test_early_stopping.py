"""A run ends where its evaluations get no better, once and for good, whoever is interrupted meanwhile."""

import math
import os
import signal

import pytest
from etils import epath
from rich.console import Console

from sft_jax.options import options_of
from sft_jax.runs.checkpoints import Checkpoints
from sft_jax.runs.metric_log import read_metrics
from sft_jax.training import run
from sft_jax.training.best import BestEvaluation
from tests import tiny
from tests.training import moments

NLL = "held_out/nll"


def best(root, values, patience=2, **overrides):
    options = options_of(tiny.config(root, **{"evaluation.patience": patience} | overrides))
    history = [{"step": 10 * number, NLL: value} for number, value in enumerate(values)]
    return BestEvaluation(options, [{"step": -1, "train/loss": 1.0}, *history])


@pytest.mark.parametrize(
    ("values", "overrides", "step", "since", "final"),
    [
        ([], {}, None, 0, False),
        ([3.0], {}, 0, 0, False),
        ([3.0, 2.0, 2.1], {}, 10, 1, False),
        ([3.0, 2.0, 2.1, 2.0], {}, 10, 2, True),  # as good is not better
        ([3.0, 2.0, 2.1, 1.9999, 2.5], {}, 30, 1, False),  # better by any amount
        ([3.0, 2.0, 2.1, 2.2], {"checkpoint.best_is": "max"}, 0, 3, True),
        ([3.0, math.nan, None, 2.0], {}, 30, 0, False),  # null is what the log has for what is not finite
        ([3.0, math.inf, None], {}, 0, 2, True),
        ([math.nan, None], {}, None, 2, True),
        ([3.0, 4.0, 5.0, 6.0], {"evaluation.patience": 0}, 0, 3, False),
    ],
)
def test_when_a_run_is_at_its_end(tmp_path, values, overrides, step, since, final):
    found = best(tmp_path, values, **overrides)
    assert (found.step, found.since, found.is_final()) == (step, since, final)


def test_what_is_said_of_the_best(tmp_path):
    assert best(tmp_path, []).text(100) == ""
    assert best(tmp_path, [3.0, 1.23]).text(100) == "best held_out/nll 1.2300 at step 10 of 100"
    assert best(tmp_path, [3.0]).text(100) == "best held_out/nll 3.0000 at step 0 of 100, before any training"


# Larger is better, and the loss falls: no evaluation after the first is better. Evaluations are at 2, 4, 6, …
WORSE = {
    "duration": "20 steps",
    "evaluation.every": "2 steps",
    "checkpoint.every": "3 steps",
    "checkpoint.best_is": "max",
    "evaluation.patience": 3,
}


def numbers(workdir):
    return [
        {name: value for name, value in line.items() if not name.startswith("speed/")}
        for line in read_metrics(workdir / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    root = tmp_path_factory.mktemp("ended")
    console = Console(record=True, width=200)
    result = run(tiny.config(root, **WORSE), root / "run", console=console)
    return root, result, console.export_text()


def test_a_run_that_ends_early(ended):
    root, result, shown = ended
    assert (result.step, result.total_steps, result.stopped_early, result.best_step) == (6, 20, True, 0)
    assert result.interrupted is None
    assert "Ended early, at step 6 of 20: 3 evaluations in a row without a better held_out/nll" in shown
    assert "at step 0 of 20, before any training" in shown
    lines = read_metrics(root / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(7))
    since = {line["step"]: line["progress/evaluations_since_best"] for line in lines if NLL in line and line["step"]}
    assert since == {2: 1, 4: 2, 6: 3}
    assert result.metrics[NLL] == lines[-1][NLL]
    checkpoints = Checkpoints(epath.Path(root / "run"), keep_last=10, read_only=True)
    assert checkpoints.latest() == 6
    checkpoints.close()


def test_the_same_command_again_says_that_it_is_finished(ended):
    root, result, _ = ended
    before, console = numbers(root / "run"), Console(record=True, width=200)
    assert run(tiny.config(root, **WORSE), root / "run", console=console) == result
    assert numbers(root / "run") == before
    shown = console.export_text()
    assert "holds the finished run" in shown
    assert "Ended early, at step 6 of 20" in shown
    assert "--config.evaluation.patience" in shown


@pytest.mark.parametrize(("moment", "step"), [("dispatch", 3), ("dispatch", 5), ("in evaluation", 6)])
def test_an_interruption_does_not_start_the_count_again(ended, tmp_path, monkeypatch, moment, step):
    root, result, _ = ended
    with monkeypatch.context() as patch:
        moments.at(moment, step, lambda: os.kill(os.getpid(), signal.SIGTERM), patch.setattr)
        first = run(tiny.config(root, **WORSE), tmp_path / "run")
    assert (first.interrupted is None) == first.stopped_early
    assert first.interrupted or step == 6
    assert run(tiny.config(root, **WORSE), tmp_path / "run") == result
    assert numbers(tmp_path / "run") == numbers(root / "run")


def test_a_run_that_died_before_its_last_checkpoint_ends_at_the_same_step(ended, tmp_path, monkeypatch):
    """The log already says that it ends; what counts is what it says up to the checkpoint."""
    root, result, _ = ended

    class DiedError(Exception):
        pass

    def die():
        raise DiedError

    with monkeypatch.context() as patch:
        moments.at("before save", 6, die, patch.setattr)
        with pytest.raises(DiedError):
            run(tiny.config(root, **WORSE), tmp_path / "run")
    assert numbers(tmp_path / "run")[-1]["step"] == 6
    assert run(tiny.config(root, **WORSE), tmp_path / "run") == result
    assert numbers(tmp_path / "run") == numbers(root / "run")


@pytest.mark.parametrize(("patience", "step"), [(4, 8), pytest.param(0, 20, marks=pytest.mark.slow)])
def test_more_patience_goes_on_as_advised(ended, tmp_path, patience, step):
    """With the numbers of a run that had it from the beginning."""
    root, _, _ = ended
    config = tiny.config(root, **WORSE | {"evaluation.patience": 1})
    assert run(config, tmp_path / "run").step == 2
    more = tiny.config(root, **WORSE | {"evaluation.patience": patience})
    result = run(more, tmp_path / "run")
    assert (result.step, result.stopped_early) == (step, step < 20)
    assert run(more, tmp_path / "whole") == result
    of_steps = [
        [{**line, "progress/evaluations_since_best": 0} for line in numbers(tmp_path / name)]
        for name in ("run", "whole")
    ]
    assert of_steps[0] == of_steps[1]


REFUSED = [
    ({"checkpoint.best_metric": ""}, {"checkpoint.best_metric": NLL}, "there is no metric by which"),
    ({"evaluation.every": "0 steps"}, {"evaluation.every": "100 steps"}, "nothing is measured before the end"),
]


@pytest.mark.parametrize(("given", "advised", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_patience_without_anything_to_wait_for_is_refused(tmp_path, given, advised, message):
    config = {"evaluation.patience": 2, "duration": "1 steps"}
    with pytest.raises(ValueError, match=rf"--config\.evaluation\.patience=2: .*{message}"):
        run(tiny.config(tmp_path, **config | given), tmp_path / "run")
    assert run(tiny.config(tmp_path, **config | given | advised), tmp_path / "run").step == 1


def test_patience_without_held_out_data_is_refused(tmp_path):
    config = {"evaluation.patience": 2, "duration": "1 steps"}
    with pytest.raises(ValueError, match=r"--config\.evaluation\.patience=2: .* give --config\.data\.held_out"):
        run(tiny.config(tmp_path, **config | {"data.held_out": ""}), tmp_path / "run")
    assert run(tiny.config(tmp_path, **config), tmp_path / "run").step == 1
