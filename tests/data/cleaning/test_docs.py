"""Cleaning in the docs: the step shown works as it stands there, and every step is listed."""

import re
from pathlib import Path
from unittest import mock

from sft_jax.data import cleaning

DOCS = Path(__file__).parents[3] / "docs"


def test_the_step_that_is_shown(record, clean):
    code = next(
        c for c in re.findall(r"```python\n(.*?)```", (DOCS / "extending.md").read_text(), re.S) if "STEPS[" in c
    )
    records = [record("so sorry", name="t:1"), record("sorry-free", name="t:2")]
    with mock.patch.dict(cleaning.STEPS):
        exec(compile(code, "extending.md", "exec"), {})
        kept, log = clean(records, "drop_answers_with=sorry")
    assert kept == records[1:]
    assert log.dropped[0].reason == "drop_answers_with: an answer has an unwanted word"


def test_every_step_is_listed():
    lines = (DOCS / "data.md").read_text().split("\n")
    listed = {name for line in lines if line.startswith("| `") for name in re.findall(r"`(\w+)", line.split("|")[1])}
    assert cleaning.STEPS.keys() <= listed
