"""Successive halving: who goes on, and that a search which was killed decides what it would have decided."""

import dataclasses
import json
import math
import re

import pytest
from rich.console import Console

from configs import sft
from sft_jax.runs.workdir import WorkdirError
from sft_jax.sweeps import SuccessiveHalving, product, seeds, values
from sft_jax.sweeps.directory import claim_sweep
from sft_jax.sweeps.halving import check_halving, halve
from sft_jax.sweeps.problems import SweepError
from sft_jax.sweeps.runs import runs_of
from tests.sweeps.searched import KilledError, Launcher

QUIET = Console(quiet=True)
RATES = [1e-5, 1e-4, 1e-3, 1e-2]
GRID = product(values("optimizer.learning_rate", RATES), seeds(2))
SEARCH = SuccessiveHalving(first=10, eta=2)
TOTAL, EVERY = 80, 10

PROMOTED = [  # (what the settings measured, a list of seeds each; eta; numbers of the settings that go on)
    ([[3.0], [1.0], [2.0], [4.0]], 2, [1, 2]),
    ([[3.0], [1.0], [2.0], [4.0]], 4, [1]),
    ([[3.0], [1.0], [2.0]], 4, [1]),
    ([[3.0], [1.0], [2.0]], 2, [1]),
    ([[1.0, 5.0], [2.9, 2.9]], 2, [1]),  # by means
    ([[1.0, None], [5.0, 5.0]], 2, [1]),  # a run of it failed
    ([[1.0, float("nan")], [5.0, 5.0]], 2, [1]),
    ([[2.0], [2.0], [2.0], [1.0]], 2, [0, 3]),  # equal: the first
    ([[None], [None]], 2, []),
]


@pytest.mark.parametrize(("measured", "eta", "numbers"), PROMOTED)
def test_who_goes_on(measured, eta, numbers):
    settings = [[f"{number}{seed}" for seed in range(len(one))] for number, one in enumerate(measured)]
    by_name = {
        name: value
        for names, one in zip(settings, measured, strict=True)
        for name, value in zip(names, one, strict=True)
    }
    made = SuccessiveHalving(first=1, eta=eta).promoted(by_name, settings)
    assert made == [name for number in numbers for name in settings[number]]


def test_more_can_be_better():
    search = SuccessiveHalving(first=1, eta=2, metric="accuracy", mode="max")
    assert search.promoted({"a": 0.2, "b": 0.9}, [["a"], ["b"]]) == ["b"]


RUNGS = [(10, 2, 80, [10, 20, 40, 80]), (10, 3, 80, [10, 30, 80]), (100, 3, 80, [80]), (80, 3, 80, [80])]


@pytest.mark.parametrize(("first", "eta", "total", "steps"), RUNGS)
def test_rungs(first, eta, total, steps):
    assert SuccessiveHalving(first=first, eta=eta).rungs(total) == steps


WRONG = [
    ({"first": 0}, "first=0, expected the steps of the first rung, as first=50"),
    ({"first": 5, "eta": 1}, "eta=1, expected a whole number of at least 2"),
    ({"first": 5, "mode": "least"}, "mode='least', expected one of min, max"),
]


@pytest.mark.parametrize(("given", "said"), WRONG, ids=[said for _, said in WRONG])
def test_what_is_no_search(given, said):
    with pytest.raises(ValueError, match=re.escape(f"SuccessiveHalving: {said}")):
        SuccessiveHalving(**given)


# ---- A search from end to end, with runs that train nothing ----------------------------------------------------------


def config(**changes):
    made = sft.get_config("lora").copy_and_resolve_references().unlock()
    made.duration, made.evaluation.every, made.data.held_out = f"{TOTAL} steps", f"{EVERY} steps", "held_out.jsonl"
    made.update_from_flattened_dict(changes)
    return made.lock()


def claimed(root, stated=GRID, **changes):
    statement = {"sweep": "sweep.py", "config": "configs/sft.py:lora", "search": SEARCH.to_json()}
    return claim_sweep(root / "sweep", base=config(**changes), stated=stated, **statement)


def loss(run, step):
    """The higher the rate the faster it falls at first."""
    rate = run.config.optimizer.learning_rate
    floor = {1e-2: 2.0, 1e-3: 1.0, 1e-4: 1.5, 1e-5: 3.0}[rate]
    return floor + 3.0 / (1 + step * rate * 30) + 0.01 * run.config.seed


def by_step(launcher):
    return {step: [name for name, _, last in launcher.launched if last == step] for step in (10, 20, 40, 80)}


def test_a_search(tmp_path):
    launcher = Launcher(loss, EVERY, TOTAL)
    sweep = claimed(tmp_path)
    assert halve(SEARCH, sweep, launcher, QUIET) == 0
    assert {step: len(names) for step, names in by_step(launcher).items()} == {10: 8, 20: 4, 40: 2, 80: 2}
    assert all("learning_rate=0.01" in name for name in by_step(launcher)[80])
    assert [(begin, last) for name, begin, last in launcher.launched if name == by_step(launcher)[80][0]] == [
        (0, 10),
        (10, 20),
        (20, 40),
        (40, 80),
    ]
    rungs = json.loads((tmp_path / "sweep" / "search.json").read_text())["rungs"]
    assert [rung["step"] for rung in rungs] == [10, 20, 40, 80]
    assert rungs[-1]["promoted"] == []
    assert rungs[0]["metrics"][sweep.stated[0]] == pytest.approx(loss(sweep.runs[0], 10))


def test_a_second_start_of_a_finished_search_launches_nothing(tmp_path):
    halve(SEARCH, claimed(tmp_path), Launcher(loss, EVERY, TOTAL), QUIET)
    again = Launcher(loss, EVERY, TOTAL)
    assert halve(SEARCH, claimed(tmp_path), again, QUIET) == 0
    assert again.launched == []


@pytest.mark.parametrize("how", [pytest.param("dies_after", marks=pytest.mark.slow), "leaves_after"])
def test_a_search_that_was_killed_anywhere_goes_on(tmp_path, how):
    whole = Launcher(loss, EVERY, TOTAL)
    halve(SEARCH, claimed(tmp_path / "whole"), whole, QUIET)
    expected = (tmp_path / "whole" / "sweep" / "search.json").read_text()
    for number in range(0, len(whole.launched), 2):
        root = tmp_path / str(number)
        launcher = Launcher(loss, EVERY, TOTAL)
        setattr(launcher, how, number)
        if how == "dies_after":
            with pytest.raises(KilledError):
                halve(SEARCH, claimed(root), launcher, QUIET)
        else:
            assert halve(SEARCH, claimed(root), launcher, QUIET) == 130
        setattr(launcher, how, None)
        assert halve(SEARCH, claimed(root), launcher, QUIET) == 0
        assert launcher.launched == whole.launched
        assert (root / "sweep" / "search.json").read_text() == expected


def test_a_run_that_fails_takes_its_setting_out(tmp_path):
    fails = lambda run, step: (
        None if run.config.seed == 1 and run.config.optimizer.learning_rate == 1e-3 else loss(run, step)
    )
    launcher = Launcher(fails, EVERY, TOTAL)
    assert halve(SEARCH, claimed(tmp_path), launcher, QUIET) == 1
    assert not any("1e-3" in name for name in by_step(launcher)[20])
    assert len(by_step(launcher)[80]) == 2


def test_a_loss_that_is_not_finite_takes_its_setting_out(tmp_path):
    overflows = lambda run, step: math.inf if run.config.optimizer.learning_rate == 1e-3 else loss(run, step)
    launcher = Launcher(overflows, EVERY, TOTAL)
    assert halve(SEARCH, claimed(tmp_path), launcher, QUIET) == 1
    assert not any("1e-3" in name for name in by_step(launcher)[20])
    assert len(by_step(launcher)[80]) == 2


def test_a_metric_that_runs_did_not_measure_ends_the_search(tmp_path):
    search, launcher = dataclasses.replace(SEARCH, metric="held_out/loss/other"), Launcher(loss, EVERY, TOTAL)
    statement = {"sweep": "sweep.py", "config": "configs/sft.py:lora", "search": search.to_json()}
    sweep = claim_sweep(tmp_path / "sweep", base=config(), stated=GRID, **statement)
    said = (
        r"decides by held_out/loss/other, which was not measured at step 10; there are held_out/nll\. Name one of them"
    )
    with pytest.raises(SweepError, match=said):
        halve(search, sweep, launcher, QUIET)
    assert not (tmp_path / "sweep" / "search.json").exists()
    assert SEARCH.metric == "held_out/nll"  # the one that is named, in another directory
    assert halve(SEARCH, claimed(tmp_path / "other"), Launcher(loss, EVERY, TOTAL), QUIET) == 0


METRICS = [
    (
        "held_out/nlll",
        "'held_out/nlll', which evaluations do not measure; they measure held_out/accuracy, held_out/gap",
    ),
    ("nll", "'nll', which evaluations do not measure"),
    ("tasks/titles/rouge_l", "decides by tasks/titles/rouge_l, and there is no task 'titles' in the config"),
]


@pytest.mark.parametrize(("metric", "said"), METRICS)
def test_a_metric_that_there_is_not_is_refused(metric, said):
    with pytest.raises(SweepError) as error:
        check_halving(dataclasses.replace(SEARCH, metric=metric), runs_of(config(), GRID))
    assert str(error.value).startswith("runs 1-8: ")
    assert said in str(error.value)


def test_where_all_fail_the_search_ends(tmp_path):
    with pytest.raises(SweepError, match=r"no run was measured at step 10; their log\.txt say what went wrong"):
        halve(SEARCH, claimed(tmp_path), Launcher(lambda run, step: None, EVERY, TOTAL), QUIET)


def test_a_search_that_has_begun_takes_no_other_runs(tmp_path):
    launcher = Launcher(loss, EVERY, TOTAL)
    launcher.leaves_after = 9
    halve(SEARCH, claimed(tmp_path), launcher, QUIET)
    more = claimed(tmp_path, [*GRID, {"adapter.rank": 4}])
    with pytest.raises(SweepError, match="takes no other runs; give another --workdir") as error:
        halve(SEARCH, more, launcher, QUIET)
    assert more.stated[-1] in str(error.value)


@pytest.mark.parametrize("text", ["{", "{}", '{"rungs": 3}', '{"rungs": [3]}'])
def test_a_damaged_record_is_named(tmp_path, text):
    sweep = claimed(tmp_path)
    (tmp_path / "sweep" / "search.json").write_text(text)
    with pytest.raises(WorkdirError, match=r"search\.json is damaged .*put it back from a copy"):
        halve(SEARCH, sweep, Launcher(loss, EVERY, TOTAL), QUIET)


EACH_10 = {"evaluation.every": "10 steps"}
REFUSED = [  # (changes of the config, what is said, changes by which it is mended)
    (
        {"duration": "1 epochs"},
        "counts in steps: give --config.duration in steps, as '600 steps', in place of '1 epochs'",
        {"duration": "600 steps"},
    ),
    ({"evaluation.every": "100 examples"}, "counts in steps: give --config.evaluation.every in steps", EACH_10),
    ({"evaluation.every": "4 steps"}, "where it is a multiple of --config.evaluation.every='4 steps'", EACH_10),
    ({"evaluation.every": "0 steps"}, "where it is a multiple of --config.evaluation.every='0 steps'", EACH_10),
    (
        {"evaluation.patience": 2},
        "--config.evaluation.patience=2: SuccessiveHalving ends runs early itself; leave it at 0",
        {"evaluation.patience": 0},
    ),
    (
        {"data.held_out": ""},
        "decides by held_out/nll, and there are no held-out rows: give --config.data.held_out",
        {"data.held_out": "held_out.jsonl"},
    ),
]


@pytest.mark.parametrize(("changes", "said", "mended"), REFUSED, ids=[said for _, said, _ in REFUSED])
def test_runs_that_cannot_be_compared_are_refused_and_mended_as_advised(changes, said, mended):
    with pytest.raises(SweepError) as error:
        check_halving(SEARCH, runs_of(config(**changes), GRID))
    assert str(error.value).startswith("runs 1-8: ")
    assert said in str(error.value)
    assert check_halving(SEARCH, runs_of(config(**{**changes, **mended}), GRID)) in (80, 600)


def test_runs_of_different_lengths_are_refused():
    with pytest.raises(SweepError, match=r"runs have 40, 80 steps, and at a rung .* give all one duration"):
        check_halving(SEARCH, runs_of(config(), values("duration", ["40 steps", "80 steps"])))
