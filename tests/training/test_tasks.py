"""Tasks inside a run: measured when they are due, without compiling anew, kept, and reported at the end."""

import json

import pytest

from configs import sft
from sft_jax.runs.metric_log import read_metrics
from sft_jax.runs.workdir import WorkdirError
from sft_jax.training import run
from tests import tiny
from tests.training.test_programs import compilations

EVERY = {"duration": "4 steps", "evaluation.every": "1 steps", "checkpoint.every": "0 steps"}


def config(root, tasks=None, **overrides):
    made = tiny.config(root, **EVERY | overrides)
    with made.unlocked():
        for name, task in (tasks or {"echo": sft.task(max_new_tokens=8, rows=6)}).items():
            made.evaluation.tasks[name] = task
    return made


def measured(workdir, name):
    return {line["step"]: line[name] for line in read_metrics(workdir / "metrics.jsonl") if name in line}


def test_tasks_are_measured_when_they_are_due_and_reported_at_the_end(tmp_path):
    tasks = {"echo": sft.task(max_new_tokens=8, rows=6), "which": sft.task(kind="choose", rows=6)}
    chosen = {"evaluation.tasks_every": "2 steps", "checkpoint.best_metric": "tasks/which/probability"}
    result = run(config(tmp_path, tasks, **chosen, **{"checkpoint.best_is": "max"}), tmp_path / "run")
    for name in ("tasks/echo/exact_match", "tasks/which/accuracy", "tasks/which/probability"):
        assert list(measured(tmp_path / "run", name)) == [0, 2, 4]
    probability = measured(tmp_path / "run", "tasks/which/probability")
    assert result.best_step == max(probability, key=probability.get)
    assert 0 < probability[0] < 1
    results = json.loads((tmp_path / "run" / "report" / "results.json").read_text())
    assert results["tasks"]["which"]["scores"]["sft"]["probability"]["value"] == pytest.approx(probability[4])
    assert results["tasks"]["which"]["scores"]["base"]["probability"]["value"] == pytest.approx(probability[0])
    assert results["methods"]["sft"]["training"]["steps"] == 4
    assert results["methods"]["sft"]["training"]["tokens"] > 0
    assert "echo" in (tmp_path / "run" / "report" / "report.md").read_text()
    kept = json.loads((tmp_path / "run" / "evaluations" / "4" / "echo.json").read_text())
    assert [line["id"] for line in kept["lines"]] == [f"held_out.jsonl:{number}" for number in range(1, 7)]


@pytest.mark.slow
def test_answers_where_sequences_are_split_over_devices(tmp_path):
    """Samples and tasks of a run whose mesh splits sequences, and steps in which there is one token to split."""
    tasks = {"echo": sft.task(max_new_tokens=8, rows=6), "which": sft.task(kind="choose", rows=6)}
    more = {"evaluation.samples": 2, "evaluation.sample_tokens": 6, "mesh.fsdp": 2, "optimizer.learning_rate": 1e-3}
    lines, texts = {}, {}
    for context in (1, 4):
        workdir = tmp_path / str(context)
        mesh = {"mesh.context": context, "mesh.replica": 4 // context}
        run(config(tmp_path, tasks, **more, **mesh), workdir)
        metrics = read_metrics(workdir / "metrics.jsonl")
        lines[context] = [
            {name: value for name, value in line.items() if not name.startswith("speed/")} for line in metrics
        ]
        texts[context] = json.loads((workdir / "evaluations" / "4" / "echo.json").read_text())["lines"]
    for line, other in zip(lines[4], lines[1], strict=True):
        assert line == pytest.approx(other, rel=1e-4, abs=1e-5)
    assert texts[4] == texts[1]


def test_a_task_is_compiled_once(tmp_path, monkeypatch):
    from sft_jax.training import tasks

    counts = []
    call = tasks.TaskEvaluation.__call__

    def counted(self, *arguments):
        with compilations() as seen:
            found = call(self, *arguments)
        counts.append(len(seen))
        return found

    monkeypatch.setattr(tasks.TaskEvaluation, "__call__", counted)
    both = {"echo": sft.task(max_new_tokens=8, rows=6), "which": sft.task(kind="choose", rows=6)}
    run(config(tmp_path, both, **{"model.max_positions": 100}), tmp_path / "run")  # no other test has that
    assert len(counts) == 5
    assert counts[0] > 0
    assert counts[1:] == [0, 0, 0, 0]


def test_a_run_that_was_interrupted_reports_from_its_start(tmp_path, monkeypatch):
    whole = config(tmp_path)
    run(whole, tmp_path / "whole")
    from sft_jax.training import loop

    class Stopped(loop.StopRequest):
        def requested(self, step):
            return step == 2

    with monkeypatch.context() as patch:
        patch.setattr(loop, "StopRequest", Stopped)
        assert run(whole, tmp_path / "parts").interrupted
    run(whole, tmp_path / "parts")
    results = [json.loads((tmp_path / name / "report" / "results.json").read_text()) for name in ("whole", "parts")]
    assert results[0]["tasks"]["echo"]["scores"] == results[1]["tasks"]["echo"]["scores"]
    assert measured(tmp_path / "whole", "tasks/echo/exact_match") == measured(
        tmp_path / "parts", "tasks/echo/exact_match"
    )


def test_a_run_that_goes_on_after_its_end_is_reported_anew(tmp_path):
    """It ends early, since what gets lower is to get higher; without patience it goes on, and is then left alone."""
    report = tmp_path / "run" / "report" / "results.json"
    steps = lambda: json.loads(report.read_text())["methods"]["sft"]["training"]["steps"]
    wrong = {"checkpoint.best_is": "max", "evaluation.patience": 1}
    assert run(config(tmp_path, **wrong), tmp_path / "run").stopped_early
    assert steps() == 1
    run(config(tmp_path, **wrong | {"evaluation.patience": 0}), tmp_path / "run")
    assert steps() == 4
    report.unlink()
    run(config(tmp_path, **wrong | {"evaluation.patience": 0}), tmp_path / "run")
    assert not report.exists()  # its page is there
    (report.parent / "report.html").unlink()
    run(config(tmp_path, **wrong | {"evaluation.patience": 0}), tmp_path / "run")
    assert steps() == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"evaluation.tasks_every": "3 steps", "evaluation.every": "2 steps"}, "is 3 steps, no multiple of the 2"),
        ({"checkpoint.best_metric": "tasks/other/exact_match"}, r"is not measured; there are .*tasks/echo/…"),
        ({"checkpoint.best_metric": "tasks/echo/field_f1"}, r"is not measured; there are .*tasks/echo/exact_match"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, overrides, message):
    with pytest.raises((ValueError, WorkdirError), match=message):
        run(config(tmp_path, **overrides), tmp_path / "run")
