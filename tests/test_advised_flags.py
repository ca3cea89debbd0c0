"""Every flag of a config that a message or a page names can be set, and has a value there that the config takes."""

import functools
import operator
import re
from pathlib import Path

import pytest

from configs import sft
from sft_jax.training.checks import CHECKS

ROOT = Path(__file__).parents[1]
FILES = [*sorted((ROOT / "sft_jax").rglob("*.py")), ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FILES.remove(ROOT / "docs" / "extending.md")  # its flags name what the code there adds
FLAG = re.compile(r"--config\.([a-z_]+(?:\.[a-z_]+)*)(?:=(\w+)(?![\w(.{/]))?")
PLACES = {"data.mixture", "rollouts.rewards"}  # of entries that a user names


def named():
    for path in FILES:
        for found in FLAG.finditer(re.sub(r'"\n\s*f?"', "", path.read_text())):
            yield path.relative_to(ROOT), found[1], found[2]


def test_flags_are_found():
    assert len({field for _, field, _ in named()}) > 40


@pytest.mark.parametrize("path", sorted({str(path) for path, _, _ in named()}))
def test_flags_name_fields_and_values_that_there_are(path):
    config = sft.get_config()
    for where, field, value in named():
        if str(where) != path or any(field.startswith(place) for place in PLACES):
            continue
        old = functools.reduce(operator.getitem, field.split("."), config)
        if value and field in CHECKS and isinstance(old, str):
            is_good, expected = CHECKS[field]
            assert is_good(value), f"--config.{field}={value} {expected}"
