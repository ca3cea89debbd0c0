"""A sweep as it is asked for: shown, checked and run, with a launcher that trains nothing."""

import pytest
from rich.console import Console

from sft_jax.config_files import ConfigError
from sft_jax.runs.workdir import WorkdirError
from sft_jax.sweeps.problems import SweepError
from sft_jax.sweeps.statement import Statement
from tests import tiny
from tests.sweeps.searched import Launcher

START = "from sft_jax.sweeps import *\n"
GRID = START + 'def get_sweep():\n    return product(values("optimizer.learning_rate", [1e-3, 1e-2]), seeds(2))\n'
HALVED = GRID + "def get_search():\n    return SuccessiveHalving(first=2, eta=2)\n"
OPTUNA = START + (
    "def get_search():\n    return Optuna(space={'optimizer.learning_rate': log_uniform(1e-4, 1e-2)}, trials=9)\n"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    changes = {"duration": "8 steps", "evaluation.every": "2 steps"}
    return tiny.config(tmp_path_factory.mktemp("tiny"), "lora", **changes)


@pytest.fixture
def state(base, tmp_path):
    def stated(text):
        (tmp_path / "sweep.py").write_text(text)
        return Statement.of(str(tmp_path / "sweep.py"), "configs/sft.py:lora", base, tmp_path / "out")

    return stated


def everything(name):
    return True


def loss(run, step):
    return run.config.optimizer.learning_rate * 100 + run.config.seed / 10 + 1 / step


def test_what_is_left_is_launched(state, tmp_path, capsys):
    launcher = Launcher(loss, 2, 8)
    statement = state(GRID)
    assert statement.run(launcher, lambda name: "seed=0-" in name, Console()) == 0
    assert len(launcher.launched) == 2
    assert statement.run(launcher, everything, Console()) == 0
    names = [name for name, _, _ in launcher.launched]
    assert len(set(names)) == len(names) == 4
    assert statement.run(launcher, everything, Console()) == 0
    assert len(launcher.launched) == 4
    assert capsys.readouterr().out.endswith("4 runs: 4 finished. Nothing is left to do.\n")


def test_what_failed_is_launched_again(state):
    launcher = Launcher(lambda run, step: None if run.config.seed else loss(run, step), 2, 8)
    assert state(GRID).run(launcher, everything, Console(quiet=True)) == 1
    assert state(GRID).run(launcher, everything, Console(quiet=True)) == 1
    names = [name for name, _, _ in launcher.launched]
    assert len(names) == 6
    assert sorted(names[4:]) == sorted(name for name in names[:4] if "seed=1" in name)


def test_a_search_is_run(state):
    launcher = Launcher(loss, 2, 8)
    assert state(HALVED).run(launcher, everything, Console(quiet=True)) == 0
    assert [(begin, last) for _, begin, last in launcher.launched] == [(0, 2)] * 4 + [(2, 4)] * 2 + [(4, 8)] * 2


SHOWN = [  # (sweep file, what is said of it)
    (
        GRID,
        ["4 runs: 4 waiting", "Time: no earlier runs", "Memory of a step of each device, as compiled for 8 x cpu: 1"],
    ),
    (HALVED, ["At steps 2, 4 the best 1/2 of the settings go on, to step 8."]),
    (OPTUNA, ["1 run: 1 waiting", "9 trials, 4 at a time", "optimizer.learning_rate: Uniform(low=0.0001"]),
]


@pytest.mark.parametrize(("text", "said"), SHOWN, ids=["all", "halved", "optuna"])
def test_a_dry_run(state, tmp_path, capsys, text, said):
    state(text).show(Console())
    out = capsys.readouterr().out
    for words in said:
        assert words in out
    assert not (tmp_path / "out").exists()


MISTAKES = [  # (text of the sweep file, what is said)
    ("def get_sweep():\n    return [{'optimizer.lr': 1}, {'seed': 'x'}]", "run 1: optimizer.lr: the section"),
    ("def get_sweep():\n    return [{'seed': 1}, {'seed': 1}]", "runs 1-2 are the same: seed=1"),
    ("def get_sweep():\n    return []", "the sweep is empty"),
    ("def get_sweep():\n    return x", "sweep.py, line 2: NameError: name 'x' is not defined"),
    ("def get_sweep():\n    return [{'data.train': '/no.jsonl'}]", "run 1: /no.jsonl: there is no such file"),
    ("def get_sweep():\n    return [{'model.source': '/no'}]", "run 1: /no: no such file or directory"),
    (HALVED.replace("first=2", "first=3"), "where it is a multiple of --config.evaluation.every='2 steps'"),
    (OPTUNA.replace("optimizer.learning_rate", "optimizer.rate"), "has no field 'rate'"),
    (OPTUNA.replace("log_uniform(1e-4", "uniform(-1"), "--config.optimizer.learning_rate=-1.0 must be at least 0"),
]


@pytest.mark.parametrize(("text", "said"), MISTAKES, ids=[said for _, said in MISTAKES])
def test_a_mistake_is_found_before_anything_is_written(state, tmp_path, text, said):
    launcher = Launcher(loss, 2, 8)
    with pytest.raises((ConfigError, SweepError)) as error:
        state(text).run(launcher, everything, Console(quiet=True))
    assert said in str(error.value)
    assert launcher.launched == []
    assert not (tmp_path / "out").exists()


def test_a_pattern_that_matches_no_run_is_refused(state, tmp_path):
    with pytest.raises(SweepError, match="--only matches none of the 4 runs; the first is learning_rate=1e-3,seed=0-"):
        state(GRID).run(Launcher(loss, 2, 8), lambda name: False, Console(quiet=True))
    assert not (tmp_path / "out").exists()


def test_the_directory_of_another_sweep_is_refused(state):
    state(GRID).run(Launcher(loss, 2, 8), everything, Console(quiet=True))
    with pytest.raises(WorkdirError, match="is the directory of another sweep:\n  the search: null there, "):
        state(HALVED).run(Launcher(loss, 2, 8), everything, Console(quiet=True))
