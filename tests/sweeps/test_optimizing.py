"""Trials of Optuna: proposed in groups, judged by means, and the same whether the search was killed or not."""

import importlib.util
import json
import math
import statistics
import sys

import pytest
from etils import epath
from rich.console import Console

from sft_jax.runs.workdir import WorkdirError
from sft_jax.sweeps import Optuna, choice, integers, log_uniform, seeds, uniform
from sft_jax.sweeps.directory import claim_sweep
from sft_jax.sweeps.optimizing import check_trials, optimize
from sft_jax.sweeps.problems import SweepError
from tests.sweeps.searched import KilledError, Launcher
from tests.sweeps.test_halving import config

QUIET = Console(quiet=True)
SPACE = {
    "optimizer.learning_rate": log_uniform(1e-5, 1e-1),
    "adapter.rank": integers(1, 8),
    "adapter.targets": choice(("attention/.*",), ("ffn/.*",)),
    "adapter.dropout": uniform(0.0, 0.5),
}
SEARCH = Optuna(space=SPACE, trials=6, at_once=2, seed=3)
SEEDS = seeds(2)
needs_optuna = pytest.mark.skipif(
    importlib.util.find_spec("optuna") is None, reason="Optuna is not installed: pip install -r requirements-optuna.txt"
)


def loss(run, step):
    """Least near a rate of 1e-3; a little more for seed 1."""
    return 1 + (math.log10(run.config.optimizer.learning_rate) + 3) ** 2 + 0.1 * run.config.seed


def search_in(root, launcher, search=SEARCH, beside=SEEDS):
    def claim(stated):
        statement = {"sweep": "sweep.py", "config": "configs/sft.py:lora", "search": search.to_json()}
        return claim_sweep(root / "sweep", base=config(), stated=stated, **statement)

    return optimize(search, epath.Path(root / "sweep"), beside, claim, launcher, QUIET)


def trials_in(root):
    return json.loads((root / "sweep" / "search.json").read_text())["trials"]


@needs_optuna
def test_trials_are_run_and_told(tmp_path):
    launcher = Launcher(loss, 10, 80)
    assert search_in(tmp_path, launcher) == 0
    trials = trials_in(tmp_path)
    assert len(trials) == 6
    assert len(launcher.launched) == 12
    for trial in trials:
        values = trial["overrides"]
        assert values.keys() == SPACE.keys()
        assert 1e-5 <= values["optimizer.learning_rate"] <= 1e-1
        assert values["optimizer.learning_rate"] == float(f"{values['optimizer.learning_rate']:.4g}")
        assert values["adapter.targets"] in (["attention/.*"], ["ffn/.*"])
        of_seed_0 = 1 + (math.log10(values["optimizer.learning_rate"]) + 3) ** 2
        assert trial["value"] == pytest.approx(of_seed_0 + 0.05)  # a mean over seeds


@needs_optuna
def test_what_was_told_counts(tmp_path):
    """After twenty trials most proposals are nearer to the best rate than random ones are."""
    space = {"optimizer.learning_rate": SPACE["optimizer.learning_rate"]}
    search = Optuna(space=space, trials=30, at_once=5)
    search_in(tmp_path, Launcher(loss, 10, 80), search, [{}])
    far = [abs(math.log10(trial["overrides"]["optimizer.learning_rate"]) + 3) for trial in trials_in(tmp_path)]
    assert statistics.median(far[20:]) < 0.6  # of random ones 1: they lie up to 2 decades from the best


@pytest.mark.slow
@needs_optuna
def test_a_search_that_was_killed_anywhere_goes_on(tmp_path):
    whole = Launcher(loss, 10, 80)
    search_in(tmp_path / "whole", whole)
    for number in range(12):
        launcher = Launcher(loss, 10, 80)
        launcher.dies_after = number
        with pytest.raises(KilledError):
            search_in(tmp_path / str(number), launcher)
        launcher.dies_after = None
        assert search_in(tmp_path / str(number), launcher) == 0
        assert trials_in(tmp_path / str(number)) == trials_in(tmp_path / "whole")
        assert launcher.launched == whole.launched


@needs_optuna
def test_more_trials_go_on_with_those_there_are(tmp_path):
    launcher = Launcher(loss, 10, 80)
    search_in(tmp_path, launcher)
    before = trials_in(tmp_path)
    search_in(tmp_path, launcher, Optuna(space=SPACE, trials=8, at_once=2, seed=3))
    assert trials_in(tmp_path)[:6] == before
    assert len(trials_in(tmp_path)) == 8
    with pytest.raises(WorkdirError, match="is the directory of another sweep"):
        search_in(tmp_path, launcher, Optuna(space=SPACE, trials=9, at_once=2, seed=4))


@needs_optuna
def test_a_trial_that_fails_has_no_value_and_the_search_goes_on(tmp_path):
    launcher = Launcher(lambda run, step: None if run.config.adapter.rank > 4 else loss(run, step), 10, 80)
    assert search_in(tmp_path, launcher, Optuna(space={**SPACE, "adapter.rank": choice(4, 8)}, trials=8, seed=1)) == 1
    values = {(trial["overrides"]["adapter.rank"], trial["value"] is None) for trial in trials_in(tmp_path)}
    assert values == {(4, False), (8, True)}


@needs_optuna
def test_a_trial_that_is_proposed_again_is_not_run_again(tmp_path):
    launcher = Launcher(loss, 10, 80)
    search_in(tmp_path, launcher, Optuna(space={"optimizer.learning_rate": choice(1e-3, 1e-2)}, trials=6), [{}])
    assert len(trials_in(tmp_path)) == 6
    assert len(launcher.launched) == len({name for name, _, _ in launcher.launched}) == 2


def test_without_optuna_it_is_said_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(
        SweepError, match=r"asks for Optuna, which is not installed: pip install -r requirements-optuna"
    ):
        search_in(tmp_path, Launcher(loss, 10, 80))
    assert not (tmp_path / "sweep").exists()


REFUSED = [
    ({"optimizer.lr": uniform(0, 1)}, "has no field 'lr'"),
    ({"adapter.rank": uniform(0, 1)}, "expected a whole number"),
    ({"adapter.dropout": uniform(0.5, 1.5)}, "must lie in [0, 1)"),
    ({"adapter.rank": integers(-3, 8)}, "--config.adapter.rank=-3 must be at least 1"),
    ({"optimizer.name": choice("adamw", "lionn", "muon")}, "--config.optimizer.name='lionn' must be one of"),
]


@pytest.mark.parametrize(("space", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_a_space_with_a_mistake_is_refused_before_anything_runs(space, said):
    with pytest.raises(SweepError) as error:
        check_trials(Optuna(space=space), config(), SEEDS)
    assert said in str(error.value)


def test_a_metric_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="decides by 'held_out/los', which evaluations do not measure"):
        check_trials(Optuna(space=SPACE, metric="held_out/los"), config(), SEEDS)


WRONG = [
    ({"space": {}}, "Optuna: expected a dict from fields to distributions"),
    ({"space": {"seed": 3}}, "Optuna: 'seed' has 3, expected a distribution"),
    ({"space": SPACE, "trials": 0}, "Optuna: trials=0, expected a whole number of at least 1"),
]


@pytest.mark.parametrize(("given", "said"), WRONG, ids=[said for _, said in WRONG])
def test_what_is_no_search(given, said):
    with pytest.raises(ValueError, match=said):
        Optuna(**given)
