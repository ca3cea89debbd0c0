"""`python -m sft_jax.report`: what it writes, its flags, and what it says of mistakes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sweeps import written

ROOT = Path(__file__).parents[1]


def report(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "sft_jax.report", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    root = tmp_path_factory.mktemp("report") / "sweep"
    return root, written.write_sweep(root, unlike={4: "diverged"})


def test_a_sweep(sweep):
    """Flags may stand before and behind the directory."""
    root, names = sweep
    done = report(
        "--metric=held_out/loss", root, "--at=step 10", "--baseline=rank=8,learning_rate=1e-3", "--axis=tokens"
    )
    assert done.returncode == 0, done.stderr
    assert "held_out/loss, step 10; 11 finished, 1 diverged" in done.stdout
    assert names[4] in done.stdout.replace("\n", "")
    assert "FAILED: 1 of 12 runs" in done.stdout
    assert {path.name for path in (root / "report").iterdir()} == {
        *("report.html", "report.md", "report.json", "runs.csv", "settings.csv", "plots"),
    }


def test_two_runs(sweep, tmp_path):
    root, names = sweep
    done = report("--compare", root / names[0], root / names[3], f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert "adapter.rank" in done.stdout
    assert f"Report: {tmp_path / 'out' / 'report.html'}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: expected WORKDIR, got 0 directories: none"),
        (["a", "b"], "error: expected WORKDIR, got 2 directories: a b"),
        (["--compare", "a"], "error: expected --compare RUN_A RUN_B, got 1 directories: a"),
        (
            ["--compare", "a", "b", "--at=best"],
            "error: --at: not read here, it goes with the report of a sweep",
        ),
        (["a", "--at=last"], "error: --at='last': expected final, best or 'step N'"),
        (["a", "--baseline=rank"], "error: --baseline: 'rank' is not field=value"),
        (["a", "--metrics=x"], "error in the flags: Unknown command line flag 'metrics'"),
        (["/nowhere"], "error: /nowhere is not a directory"),
    ],
)
def test_mistakes_are_said_in_one_line(arguments, message):
    done = report(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr


def test_a_value_is_taken_where_advised(sweep):
    root, _ = sweep
    refused = report(root, "--at=last")
    first, second, third = re.search(r"expected (\w+), (\w+) or '(step N)'\n", refused.stderr).groups()
    for at in (first, second, third.replace("N", "10")):
        done = report(root, f"--at={at}")
        assert done.returncode == 0, done.stderr
        assert f"held_out/nll, {at}; 11 finished" in done.stdout


def test_all_flags_are_in_the_docs():
    section = (ROOT / "docs" / "sweeps.md").read_text().split("\n### The report\n")[1].split("\n### ")[0]
    listed = re.findall(r"^\| `--(\w+)`", section, re.MULTILINE)
    defined = re.findall(r'DEFINE_\w+\(\s*"(\w+)"', (ROOT / "sft_jax" / "report.py").read_text())
    assert sorted([*listed, "compare"]) == sorted(defined)
