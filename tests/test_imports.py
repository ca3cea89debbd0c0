"""What a start costs and says: heavy packages are imported where they are needed, and PyTorch is not asked for."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

ROOT = Path(__file__).parents[1]
COMMANDS = sorted(
    path.stem for path in (ROOT / "sft_jax").glob("*.py") if 'if __name__ == "__main__":' in path.read_text()
)
# Each takes from a fifth of a second to several.
HEAVY = (
    "datasets",
    "jsonschema",
    "lm_eval",
    "matplotlib",
    "nltk",
    "orbax.checkpoint",
    "pyarrow",
    "sacrebleu",
    "scipy.stats",
    "sklearn",
    "tensorboardX",
    "torch",
    "transformers",
)
_IMPORTED = "import json, sys; print(json.dumps(sorted(set(sys.modules) & set(%r))))"
_HELP = """
import runpy, sys
sys.argv[1:] = ["--help"]
try:
    runpy.run_module("sft_jax.%s", run_name="__main__", alter_sys=True)
except SystemExit:
    pass
"""
_NO_TORCH = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
hide = lambda name, *where: None if name.partition(".")[0] == "torch" else find(name, *where)
PathFinder.find_spec = staticmethod(hide)  # some call it of an object
"""


def python(*arguments, **environment):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TRANSFORMERS_")}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=inherited | environment, capture_output=True, text=True)


def test_the_commands():
    assert {"evaluate", "export", "generate", "harness", "plan", "preview", "sweep", "train"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy_and_says_nothing_else(command):
    done = python("-c", _HELP % command + _IMPORTED % ((*HEAVY, "jax", "flax", "optax"),))
    *text, imported = done.stdout.splitlines()
    assert done.stderr == ""
    assert json.loads(imported) == []
    assert any(line.startswith(f"sft_jax.{command}:") or "--" in line for line in text)


@pytest.mark.parametrize(
    "module",
    [
        "models",
        "generation",
        "training",
        "retrieval",
        "planning.asked",
        "preparation.inspection",
        "evaluation.side_by_side",
        "evaluation.results",
        "evaluation.report.write",
        "sweeps.hparams",
        "sweeps.report.analysis",
        "sweeps.report.write",
        "exports.model",
        "exports.adapter",
        "sweeps.statement",
    ],
)
def test_modules_import_heavy_packages_where_they_are_needed(module):
    done = python("-c", f"import sft_jax.{module}\n" + _IMPORTED % (HEAVY,))
    assert done.stderr == ""
    assert json.loads(done.stdout) == []


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A tiny model and its data, and `torch_free/`, which has Python find no torch, as in the core install."""
    root = tmp_path_factory.mktemp("imports")
    tiny.config(root)
    (root / "torch_free").mkdir()
    (root / "torch_free" / "sitecustomize.py").write_text(_NO_TORCH)
    return root


def without_torch(root, *arguments, **environment):
    path = os.pathsep.join((str(root / "torch_free"), str(ROOT)))
    return python("-m", *arguments, PYTHONPATH=path, **environment)


def config_flags(root):
    values = {"model.source": "model", "data.train": "train.jsonl", "data.held_out": "held_out.jsonl"}
    flags = [f"--config.{name}={root / value}" for name, value in values.items()]
    return ["--config=configs/sft.py", *flags, "--config.data.sequence_length=128", "--config.data.cache="]


@pytest.fixture(scope="module")
def trained(root):
    flags = [
        *config_flags(root),
        "--config.batch.sequences=8",
        "--config.duration=1 steps",
        f"--workdir={root / 'run'}",
    ]
    return without_torch(root, "sft_jax.train", *flags)


def harness_task(root):
    (root / "task.yaml").write_text(
        "task: completions\noutput_type: loglikelihood\ndataset_path: json\ntest_split: test\n"
        f"dataset_kwargs: {{data_files: {{test: {root / 'held_out.jsonl'}}}, cache_dir: {root / 'cache'}}}\n"
        "doc_to_text: prompt\ndoc_to_target: completion\nmetric_list: [{metric: acc}]\n"
    )
    return root / "task.yaml"


def arguments_of(command, root):
    return {
        "preview": config_flags(root),
        "sweep": [
            *config_flags(root),
            "--config.batch.sequences=8",
            "--sweep=experiments/learning_rate_and_rank/sweep.py",
            "--config.adapter.method=lora",
            f"--workdir={root / 'sweep'}",
            "--dry_run",
        ],
        "generate": [f"--model={root / 'run'}", "--prompt=red cat", "--max_new_tokens=4"],
        "evaluate": [
            *(f"--model={root / 'run'}", f"--data={root / 'held_out.jsonl'}", f"--out={root / 'scores'}"),
            *("--rows=2", "--max_new_tokens=4"),
        ],
        "export": [f"--checkpoint={root / 'run'}", f"--out={root / 'exported'}"],
        "harness": [
            f"--model={root / 'run'}",
            f"--tasks={harness_task(root)}",
            f"--out={root / 'harness'}",
            "--rows=2",
        ],
    }[command]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "sweep", "preview", "generate", "evaluate", "harness", "export"])
def test_without_torch_nothing_is_said_of_it(command, root, trained):
    done = trained
    if command != "train":
        done = without_torch(root, f"sft_jax.{command}", *arguments_of(command, root))
    assert done.returncode == 0, done.stderr
    assert "PyTorch" not in done.stderr + done.stdout
    assert "[transformers]" not in done.stderr + done.stdout


def test_the_users_verbosity_is_respected(root):
    load = f"from sft_jax.sources import load_tokenizer; load_tokenizer({str(root / 'model')!r})"
    (root / "torch_free" / "load.py").write_text(load)
    assert "PyTorch was not found" in without_torch(root, "load", TRANSFORMERS_VERBOSITY="warning").stderr
    assert without_torch(root, "load", TRANSFORMERS_VERBOSITY="error").stderr == ""
    assert without_torch(root, "load").stderr == ""


def test_private_modules_of_jax_are_imported_in_one_file():
    """One of the package, and one of the tests, each of which says why."""
    private = re.compile(r"^\s*(from|import) (jax\._|jaxlib)", re.MULTILINE)
    for root, file in (("sft_jax", "agreement.py"), ("tests", "compilations.py")):
        found = [path for path in (ROOT / root).rglob("*.py") if private.search(path.read_text())]
        assert found == [ROOT / root / file]
    assert not [path for path in (ROOT / "benchmarks").rglob("*.py") if private.search(path.read_text())]
