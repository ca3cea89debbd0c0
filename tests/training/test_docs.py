"""The update rule that docs/extending.md shows trains as it stands there."""

import re
from pathlib import Path
from unittest import mock

import pytest

from sft_jax.training import run, update_rules
from tests import tiny

DOCS = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture
def shown():
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if "RULES[" in c)
    with mock.patch.dict(update_rules.RULES):
        exec(compile(code, str(DOCS), "exec"), {})
        yield


def test_a_run_trains_with_it(shown, tmp_path):
    config = tiny.config(tmp_path, duration="2 steps", **{"optimizer.name": "sign_descent"})
    assert run(config, tmp_path / "run").step == 2
