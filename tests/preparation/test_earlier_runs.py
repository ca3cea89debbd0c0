"""Run directories as a learning curve, and directories that are none."""

import json

import pytest

from sft_jax.preparation.earlier_runs import curve_of_runs


@pytest.fixture
def run(tmp_path):
    """Writes a run: its (examples, epochs, loss) at evaluations; the one at step 0 has no progress yet."""

    def write(name, *evaluations, model="m", held_out="h"):
        directory = tmp_path / name
        directory.mkdir()
        lines = [{"step": 0, "held_out/nll": 9.0}, {"step": 1, "progress/examples": 1, "progress/epochs": 0.1}]
        for step, (examples, epochs, loss) in enumerate(evaluations, 2):
            lines.append({"step": step, "progress/examples": examples, "progress/epochs": epochs, "held_out/nll": loss})
        (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        prints = {"train": name, "model": model, "held_out": held_out}
        (directory / "environment.json").write_text(json.dumps({"fingerprints": prints}))
        return directory

    return write


def test_examples_are_counted_once_and_the_best_loss_counts(run):
    small = run("small", (100, 1.0, 3.0), (200, 2.0, 2.5), (300, 3.0, 2.8))
    large = run("large", (150, 0.5, 2.2), (300, 1.0, None))  # stopped early: 150 of its examples were seen
    curve = curve_of_runs([large, small])
    assert [(point.examples, point.loss, point.name) for point in curve.points] == [
        (100, 2.5, str(small)),
        (150, 2.2, str(large)),
    ]
    assert curve_of_runs([]) is None


def test_directories_that_say_nothing(run, tmp_path):
    good = run("good", (100, 1.0, 3.0))
    for others, words in (
        ([tmp_path], "no metrics.jsonl"),
        ([run("unmeasured", (100, 1.0, None))], "no step after the first has a held_out/nll"),
        ([run("model", (200, 1.0, 2.0), model="n")], "not the model of"),
        ([run("rows", (200, 1.0, 2.0), held_out="i")], "not the held-out rows of"),
        ([run("same", (200, 2.0, 2.0))], "all trained on 100 examples"),
    ):
        with pytest.raises(ValueError, match=words):
            curve_of_runs([good, *others])
