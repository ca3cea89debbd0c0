"""The commands of docs/tpu.md and docs/gpu.md: their modules, configs, fields, flags and files are there."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from sft_jax.hardware import hardware_named
from sft_jax.runs.workdir import flatten
from tests.xla_flags import known

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "docs" / name for name in ("tpu.md", "gpu.md")]
_FLAG = re.compile(r'DEFINE_\w+\(\s*"(\w+)"')
FLAGS = {name for path in (ROOT / "sft_jax").glob("*.py") for name in _FLAG.findall(path.read_text())}


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """(module, arguments) of each `python -m sft_jax.…` in the indented blocks of a page."""
    code = "\n".join(line for line in page.read_text().splitlines() if line.startswith("    "))
    code = re.sub(r"\\\n\s*", " ", code)
    found = re.findall(r"python -m (sft_jax\.\w+)([^\n'#]*)", code)
    return [(module, shlex.split(arguments)) for module, arguments in found]


ALL = [(page.name, module, arguments) for page in PAGES for module, arguments in commands(page)]


def test_there_are_commands():
    assert len(ALL) >= 7


@pytest.mark.parametrize(("page", "module", "arguments"), ALL)
def test_a_command_is_one(page, module, arguments):
    assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists()
    given = dict(argument.removeprefix("--").partition("=")[::2] for argument in arguments)
    path, _, arg = given["config"].partition(":")
    config = importlib.import_module(path.removesuffix(".py").replace("/", ".")).get_config(arg)
    fields = flatten(config.to_dict())
    for name in given:
        assert name in FLAGS | {"config"} or name.removeprefix("config.") in fields, name
    if "topology" in given:
        hardware_named(given["topology"].partition(":")[0])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_fields_that_are_named_exist(page):
    text = page.read_text()
    for name in re.findall(r"\brequirements[\w-]*\.txt|\btests/[\w/]+\.py|\bconfigs/\w+\.py", text):
        assert (ROOT / name).exists(), name
    fields = flatten(importlib.import_module("configs.sft").get_config().to_dict())
    for name in re.findall(r"--config\.([a-z_.]+)=", text):
        assert name in fields, name


@pytest.mark.slow
def test_the_installed_xla_knows_the_flags():
    named = re.findall(r"`(--xla_gpu_\w+(?:=\w+)?)`", (ROOT / "docs" / "gpu.md").read_text())
    flags = [flag if "=" in flag else f"{flag}=134217728" for flag in named]
    assert len(flags) >= 6
    assert known(flags) == flags
