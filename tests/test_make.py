"""The Makefile: an environment for each Python, and `.venv` a link to the one used last. Nothing is installed here."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Answers with its version, makes environments of copies of itself, and says what it would run.
PYTHON = """#!/bin/sh
case "$2" in
    *version_info*%*|*%*version_info*) echo {version} ;;
    venv) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    pytest) echo "{version} runs the tests" ;;
esac
"""


@pytest.fixture
def project(tmp_path):
    for name in ("Makefile", "pyproject.toml", *(path.name for path in ROOT.glob("requirements*.txt"))):
        shutil.copy(ROOT / name, tmp_path)
    for version in ("3.11", "3.12"):
        (tmp_path / f"python{version}").write_text(PYTHON.format(version=version))
        (tmp_path / f"python{version}").chmod(0o755)
    return tmp_path


def make(project, *arguments):
    return subprocess.run(["make", "--no-print-directory", *arguments], cwd=project, capture_output=True, text=True)


def test_each_python_has_an_environment(project):
    for version in ("3.11", "3.12", "3.11"):
        done = make(project, "test", f"PYTHON=./python{version}")
        assert done.returncode == 0, done.stderr
        assert f"{version} runs the tests" in done.stdout
        assert (project / ".venv").readlink() == Path(f".venv-{version}")
        assert (project / ".venv" / "dev").exists()
    assert sorted(path.name for path in project.glob(".venv-*")) == [".venv-3.11", ".venv-3.12"]
    assert make(project, "clean").returncode == 0
    assert list(project.glob(".venv*")) == []


def test_the_core_tests_on_another_python_leave_the_environment_in_use(project):
    assert make(project, "test", "PYTHON=./python3.11").returncode == 0
    done = make(project, "test-core", "PYTHON=./python3.12")
    assert done.returncode == 0, done.stderr
    assert "3.12 runs the tests" in done.stdout
    assert (project / ".venv").readlink() == Path(".venv-3.11")


def test_tests_that_need_compilers_have_an_environment_on_top_of_the_other(project):
    """Its Python sees the packages of the other one, and what is installed goes into its own."""
    done = make(project, "--dry-run", "plan-test", "PYTHON=./python3.11")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert ".venv-3.11/bin/python -m venv --without-pip --clear .venv-3.11-compilers" in lines
    (install,) = (line for line in lines if "requirements-plan.txt" in line)
    assert install.startswith(".venv-3.11/bin/python -m pip --python .venv-3.11-compilers/bin/python install")
    assert lines[-1].startswith(".venv-3.11-compilers/bin/python -m pytest")
    assert lines[-1].endswith("-m compilers tests")


def test_slow_tests_are_apart_and_may_have_a_limit(project):
    """Every test is in one of the two, and `.ci/run` has both."""
    said = lambda *arguments: make(project, "--dry-run", *arguments).stdout.splitlines()[-1]
    assert said("test").endswith('-m "not slow"')
    assert said("test-slow").rstrip().endswith("-m slow")
    assert said("test-slow", "MINUTES=20").endswith("-m slow --minutes=20")
    called = (ROOT / ".ci" / "run").read_text()
    assert "make test\n" in called
    assert 'make test-slow MINUTES="$left"\n' in called


def test_the_core_tests_are_there():
    listed = subprocess.run(["make", "--dry-run", "test-core"], cwd=ROOT, capture_output=True, text=True).stdout
    named = [word for word in listed.split() if word.startswith("tests/")]
    assert len(named) == 10
    assert all((ROOT / name).exists() for name in named)


def test_an_environment_without_a_version_is_not_written_over(project):
    (project / ".venv").mkdir()
    done = make(project, "test", "PYTHON=./python3.11")
    assert done.returncode != 0
    assert "make clean" in done.stdout
    assert list((project / ".venv").iterdir()) == []


def test_a_python_that_is_not_there(project):
    done = make(project, "test", "PYTHON=./python3.99")
    assert done.returncode != 0
    assert "name one: make PYTHON=python3.11 test" in done.stdout
