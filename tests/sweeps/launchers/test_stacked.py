"""The stacked launcher: groups by program, what is left trains by itself, and a second start does the rest."""

import os
import signal
from pathlib import Path

import pytest
from rich.console import Console

import tests.training.poison  # noqa: F401  registers its objectives
from sft_jax import training
from sft_jax.runs.checkpoints import Checkpoints
from sft_jax.runs.metric_log import read_metrics
from sft_jax.runs.result import read_result
from sft_jax.sweeps.directory import claim_sweep
from sft_jax.sweeps.launchers import stacked
from sft_jax.sweeps.launchers.stacked import launch
from sft_jax.sweeps.status import read_status
from sft_jax.training.stacked import run_stacked
from tests import preferences, tiny

SHORT = {"duration": "4 steps", "evaluation.every": "2 steps", "checkpoint.every": "2 steps"}


def claim(root, stated, **overrides):
    base = tiny.config(root, "lora", **SHORT | overrides)
    return claim_sweep(root / "sweep", sweep="question/sweep.py", config="configs/sft.py", base=base, stated=stated)


def launched(sweep, tmp_path, **options):
    """The exit status of a launch, and what was shown."""
    shown = tmp_path / "shown.txt"
    with shown.open("w") as file:
        code = launch(sweep, sweep.stated_runs, console=Console(file=file, width=200), **options)
    return code, shown.read_text()


def states(sweep):
    found = [read_status(sweep.run_dir(run.name)) for run in sweep.stated_runs]
    return [(status.state, status.attempts, status.launcher) for status in found]


def test_what_fits_trains_together_and_the_rest_by_itself(tmp_path):
    """A run that fails leaves the others alone; one that is done is not touched again."""
    poisoned = {"objective.name": "always poisoned", "optimizer.max_skipped_in_a_row": 2}
    stated = [{"seed": 0}, {"seed": 1, "adapter.rank": 2}, {"seed": 2}, {"precision.matmul": "bfloat16"}, poisoned]
    sweep = claim(tmp_path, stated)
    code, shown = launched(sweep, tmp_path, largest=2)
    names = [run.name for run in sweep.stated_runs]
    assert code == 1
    assert "5 runs in 4 programs, of 2, 1, 1, 1 runs. By themselves" in shown
    assert states(sweep) == [("finished", 1, "stacked")] * 4 + [("failed", 1, "stacked")]
    assert f"{names[4]}: diverged at step 2" in shown
    for name in names[:4]:
        assert read_result(sweep.run_dir(name)).state == "finished"
        assert [line["step"] for line in read_metrics(sweep.run_dir(name) / "metrics.jsonl")] == list(range(5))
    assert f"in one program with {names[1]}" in (sweep.run_dir(names[0]) / "log.txt").read_text()
    written = lambda: [Path(sweep.run_dir(name), "result.json").stat().st_mtime_ns for name in names[:4]]
    before = written()
    code, shown = launched(sweep, tmp_path)
    assert "1 run in 1 program; 4 were done before." in shown
    assert written() == before
    assert states(sweep)[4] == ("failed", 2, "stacked")


def test_a_group_that_fails_as_a_whole_stops_no_other(tmp_path, monkeypatch):
    sweep = claim(tmp_path, [{"seed": number} for number in range(4)])
    trained = []

    def without_memory(configs, *rest, **more):
        trained.append([config.seed for config in configs])
        if len(trained) == 1:
            raise RuntimeError("no room for so many lanes")
        return run_stacked(configs, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(stacked, "run_stacked", without_memory)
        code, shown = launched(sweep, tmp_path, largest=2)
    assert code == 1
    assert trained == [[0, 1], [2, 3]]
    assert states(sweep) == [("failed", 1, "stacked")] * 2 + [("finished", 1, "stacked")] * 2
    for run in sweep.stated_runs[:2]:
        assert read_result(sweep.run_dir(run.name)).error.startswith("no room for so many lanes")
        assert "Traceback" in (sweep.run_dir(run.name) / "log.txt").read_text()
        assert f"{run.name}: failed at step 0: no room for so many lanes" in shown
    assert launched(sweep, tmp_path, largest=2)[0] == 0


def test_interrupted_and_started_again(tmp_path, monkeypatch):
    """All of a group are saved, later groups do not begin, and the second start finishes each of them once."""
    sweep = claim(tmp_path, [{"seed": number} for number in range(3)])
    save = Checkpoints.save
    with monkeypatch.context() as patch:

        def save_and_ask(self, step, *what):
            save(self, step, *what)
            os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(Checkpoints, "save", save_and_ask)
        code, shown = launched(sweep, tmp_path, largest=2)
    assert code == 130
    assert "Start the same command again" in shown
    assert states(sweep) == [("interrupted", 1, "stacked")] * 2 + [("waiting", 0, "local")]
    assert launched(sweep, tmp_path, largest=2)[0] == 0
    assert states(sweep) == [("finished", 2, "stacked")] * 2 + [("finished", 1, "stacked")]


def test_rungs_of_a_search(tmp_path):
    """Runs pause at a step, all of them, and go on another time."""
    sweep = claim(tmp_path, [{"seed": 0}, {"seed": 1}])
    assert launched(sweep, tmp_path, stop_after=3)[0] == 0
    results = [read_result(sweep.run_dir(run.name)) for run in sweep.stated_runs]
    assert [(result.state, result.step) for result in results] == [("paused", 3)] * 2
    assert launched(sweep, tmp_path, stop_after=3)[0] == 0
    assert launched(sweep, tmp_path)[0] == 0
    assert [status for status, _, _ in states(sweep)] == ["finished"] * 2


def test_rows_that_are_no_one_program(tmp_path):
    """What only the rows tell is found before anything is written; then each run trains by itself."""
    trained = [{"data.masking.train_on": which} for which in ("assistant", "all")]
    sweep = claim(tmp_path, trained, **{"data.sequence_length": 96, "duration": "1 steps"})
    code, shown = launched(sweep, tmp_path)
    assert code == 0
    assert "These runs train each by itself." in shown
    assert [status for status, _, _ in states(sweep)] == ["finished"] * 2


def test_runs_of_pairs_train_each_by_itself(tmp_path):
    """Whatever they differ in; the run in a sweep is the run alone."""
    alike = {**SHORT, "checkpoint.best_metric": ""}
    base = preferences.config(tmp_path, "lora", **alike)
    stated = [{"seed": 0}, {"seed": 1}, {"objective.beta": 0.5}]
    of_sweep = {"sweep": "question/sweep.py", "config": "configs/preference.py", "base": base, "stated": stated}
    sweep = claim_sweep(tmp_path / "sweep", **of_sweep)
    code, shown = launched(sweep, tmp_path)
    assert code == 0
    assert "3 runs in 3 programs, of 1, 1, 1 runs. By themselves" in shown
    assert states(sweep) == [("finished", 1, "stacked")] * 3
    training.run(preferences.config(tmp_path, "lora", **alike), tmp_path / "alone", console=Console(quiet=True))
    lines = lambda path: [line["train/loss"] for line in read_metrics(path / "metrics.jsonl") if "train/loss" in line]
    assert lines(Path(sweep.run_dir(sweep.stated_runs[0].name))) == lines(tmp_path / "alone")


def test_a_bucket_is_refused(tmp_path):
    sweep = claim(tmp_path, [{"seed": 0}])
    object.__setattr__(sweep, "root", type(sweep.root)("gs://bucket/sweep"))
    with pytest.raises(ValueError, match="is in a bucket; --launcher=stacked needs a --workdir on a file system"):
        launch(sweep, sweep.stated_runs)
