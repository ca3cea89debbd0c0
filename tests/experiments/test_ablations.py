"""Every ablation: its runs can be made, its small form runs, its README and the index say what there is."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from rich.console import Console

from experiments.scores import read_results
from experiments.short_titles.rows import HELD_OUT, SIZES, all_files, as_lines, held_out_of
from experiments.short_titles.setting import Setting, setting_of
from sft_jax.sweeps.executing import execute
from sft_jax.sweeps.files import load
from sft_jax.sweeps.report.analysis import analyse
from sft_jax.sweeps.report.embedding import MARKS, check_marks
from sft_jax.sweeps.report.quantities import LOGGED, USUAL, quantity_of
from sft_jax.sweeps.report.reading import read_runs
from sft_jax.sweeps.runs import runs_of
from sft_jax.sweeps.shared import Shared
from sft_jax.sweeps.statement import Statement
from sft_jax.training.stacked import groups_of
from tests.command_line import config_of
from tests.experiments import smoke

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(path.parent for path in ROOT.glob("experiments/*/sweep.py"))
NAMES = [folder.name for folder in FOLDERS]
INTERVAL = re.compile(r"[\d.]+(?:e-?\d+)? \[[^\]]+\]")
NOT_MEASURED = "Not measured."
# Measured afterwards by `python -m sft_jax.evaluate`, of which there is nothing yet when the runs end.
BY_EVALUATION = "evaluation/"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("short_titles")
    for name, rows in all_files(SIZES[-1], held_out=4, seed=0).items():
        (directory / name).write_text(as_lines(rows), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def shared():
    """What all sweeps read once: tokenizer, weights, and rows."""
    return Shared()


def commands_of(folder, module):
    """The arguments of the commands in a README that run a module."""
    text = (folder / "README.md").read_text().replace("\\\n", " ")
    lines = re.findall(rf"^ +python -m {re.escape(module)}(.*)$", text, re.MULTILINE)
    return [shlex.split(line) for line in lines]


def flag(arguments, name):
    (value,) = [one.partition("=")[2] for one in arguments if one.startswith(f"--{name}=")]
    return value


def metrics_of(folder):
    """The metrics that the report of the README asks for, the first one first."""
    (arguments,) = commands_of(folder, "sft_jax.report")
    asked = [one.partition("=")[2] for one in arguments if one.startswith(("--metric=", "--also="))]
    return [name for names in asked for name in names.split(",")]


def base_of(folder, **changes):
    """The config of the command in the README, with changes."""
    (arguments,) = commands_of(folder, "sft_jax.sweep")
    config = config_of(*(one for one in arguments if one.startswith("--config")))
    changed = config.copy_and_resolve_references().unlock()
    changed.update_from_flattened_dict(changes)
    return changed.lock()


def between_marks(folder):
    return (folder / "README.md").read_text().partition(MARKS[0])[2].partition(MARKS[1])[0].strip()


def index():
    """(question and link, answer, runs, cost) by folder."""
    text = (ROOT / "experiments" / "README.md").read_text()
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| [")]
    return {re.match(r" \[(\w+)\]", row[0])[1]: [cell.strip() for cell in row] for row in rows}


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # where the commands are given


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_every_run_can_be_made(folder):
    """In full: the fields are there, the values can be had, no two runs are the same; as many as the index says."""
    (arguments,) = commands_of(folder, "sft_jax.sweep")
    assert flag(arguments, "sweep") == f"experiments/{folder.name}/sweep.py"
    runs = runs_of(base_of(folder), load(flag(arguments, "sweep")).overrides)
    assert len(runs) == int(index()[folder.name][2])
    assert len({run.name for run in runs}) == len(runs)
    seeds = {run.config.seed for run in runs}
    assert len(seeds) >= 3  # what an interval is over


@pytest.mark.parametrize(
    "folder",
    [pytest.param(one, marks=() if one.name == "data_size" else pytest.mark.slow) for one in FOLDERS],
    ids=NAMES,
)
def test_the_small_form_runs(folder, data, tmp_path, shared):
    """All of its runs reach their end, and the report of the README finds its metrics."""
    run_small_form(folder, data, tmp_path, shared)


def run_small_form(folder, data, root, shared):
    """Runs the small form of a sweep into a directory, and reads what the report of the README asks for."""
    base = base_of(folder, **{"data.cache": "", "data.train": "", "loader.tokenize_workers": 0})
    if not base.data.mixture:
        base = base_of(folder, **{"data.cache": "", "data.train": str(data / "train.jsonl")})
        base = base.unlock()
        base.data.held_out, base.loader.tokenize_workers = str(data / "held_out.jsonl"), 0
    statement = Statement.of(f"experiments/{folder.name}/sweep.py:smoke,data={data}", "a config", base, root)

    def launch(sweep, todo, stop_after):
        one_device = jax.devices()[:1]
        ends = [execute(run, sweep.run_dir(run.name), shared, devices=one_device) for run in todo]
        assert [(end.state, end.error) for end in ends] == [("finished", None)] * len(todo)
        return 0

    assert statement.run(launch, lambda name: True, Console(quiet=True)) == 0
    metrics = [name for name in metrics_of(folder) if not name.startswith(BY_EVALUATION)]
    runs = read_runs(root, {*metrics, *LOGGED, *USUAL})
    assert len(runs.runs) >= 2
    for name in metrics or [""]:
        found = analyse(runs, quantity_of(runs, name, "final", None))
        assert found["better"] is not None
        assert all(one["score"] is not None for one in found["settings"])


def test_seeds_train_in_two_programs():
    """As its command asks for: `--launcher=stacked --stack=8`."""
    folder = ROOT / "experiments" / "seeds"
    (arguments,) = commands_of(folder, "sft_jax.sweep")
    runs = runs_of(base_of(folder), load(flag(arguments, "sweep")).overrides)
    assert flag(arguments, "launcher") == "stacked"
    assert [len(group) for group in groups_of(runs, lambda run: run.config, int(flag(arguments, "stack")))] == [8, 8]


@pytest.mark.slow
def test_forgetting_is_measured_afterwards(data, tmp_path, shared):
    """The evaluations of its README give what its report asks for, and the scores of the base beside it."""
    folder = ROOT / "experiments" / "forgetting"
    stated = load(f"experiments/forgetting/sweep.py:smoke,data={data}").overrides
    run = runs_of(base_of(folder, **{"data.cache": ""}), stated)[0]
    assert execute(run, tmp_path / run.name, shared, devices=jax.devices()[:1]).error is None
    files = {"titles": data / HELD_OUT, "general": data / held_out_of("general")}
    rows = [f"--config.evaluation.tasks.{task}.path={path}" for task, path in files.items()]
    base, trained = commands_of(folder, "sft_jax.evaluate")
    flags = [f"--model={smoke.MODEL}" if one.startswith("--model=") else one for one in base]
    flags = [f"--out={tmp_path / 'base'}" if one.startswith("--out=") else one for one in flags]
    for arguments in (flags, [one.replace("$run", str(tmp_path / run.name)) for one in trained]):
        command = [sys.executable, "-m", "sft_jax.evaluate", *arguments, *rows]
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    found = read_results(tmp_path / "base")
    assert list(found["tasks"]["titles"]["scores"]) == list(found["forgetting"]["general"]["scores"]) == ["base"]
    runs = read_runs(tmp_path, {*LOGGED, *USUAL})
    for name in metrics_of(folder):
        found = analyse(runs, quantity_of(runs, name, "final", None))
        assert found["better"] is not None, name
        assert found["settings"][0]["score"] is not None, name


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_readme(folder):
    """It has the commands, what was expected, and a place for the report, in which there is one or nothing."""
    readme = folder / "README.md"
    text = readme.read_text()
    check_marks(str(readme))
    assert "**Expected.**" in text
    (report,) = commands_of(folder, "sft_jax.report")
    assert flag(report, "into") == str(readme.relative_to(ROOT))
    (sweep,) = commands_of(folder, "sft_jax.sweep")
    assert report[0] == flag(sweep, "workdir")
    measured = between_marks(folder)
    assert measured == NOT_MEASURED or INTERVAL.search(measured)
    for plot in re.findall(r"\]\((plots/[^)]+)\)", text):
        assert (folder / plot).is_file()
    assert {path.name for path in folder.glob("plots/*")} == set(re.findall(r"\]\(plots/([^)]+)\)", measured))


def test_the_index_says_what_the_folders_say():
    rows = index()
    assert sorted(rows) == NAMES
    for name, (_, answer, _, cost) in rows.items():
        measured = between_marks(ROOT / "experiments" / name)
        if measured == NOT_MEASURED:
            assert (answer, cost) == ("not measured", ""), name
            continue
        figures = INTERVAL.findall(answer)
        assert figures, name
        assert cost, name
        for figure in figures:
            assert figure in measured.replace("**", ""), (name, figure)


def test_the_argument_of_a_sweep():
    assert setting_of("") == Setting()
    assert setting_of("smoke,data=a/b") == setting_of("data=a/b,smoke") == Setting("a/b", is_smoke=True)
    assert Setting("a").file("x.jsonl") == "a/x.jsonl"
    runs = [{"seed": seed} for seed in range(3)]
    full, small = Setting(), Setting(is_smoke=True)
    assert (full.few(runs), small.few(runs)) == (runs, [runs[0], runs[2]])
    assert (full.small, full.in_full(runs), small.in_full(runs)) == ([{}], runs, [{}])
    assert small.small[0]["duration"] == "2 steps"
    with pytest.raises(ValueError, match="the argument 'smok': expected 'smoke', 'data=DIRECTORY', or both"):
        setting_of("smok")
    with pytest.raises(ValueError, match="got 'data='"):
        setting_of("smoke,data=")
