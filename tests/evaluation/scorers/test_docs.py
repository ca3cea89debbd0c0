"""Scorers in the docs: the one shown works as it stands there, and all are listed."""

import inspect
import re
from pathlib import Path

from sft_jax.evaluation.scorers import SCORERS, Case, make_scorer

ROOT = Path(__file__).parents[3]


def test_the_scorer_of_the_docs(tmp_path, monkeypatch):
    section = (ROOT / "docs" / "extending.md").read_text().split("\n## A scorer\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (tmp_path / "scorer_of_the_docs.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    scorer = make_scorer("scorer_of_the_docs:words_found")
    assert scorer("b c", Case("1", "a b")) == {"words_found": 0.5}
    assert scorer("", Case("1", "a b")) == {"words_found": 0.0}


def test_every_scorer_is_listed_with_its_options():
    rows = [line.split("|")[1:-1] for line in (ROOT / "docs" / "scorers.md").read_text().split("\n") if "| `" in line]
    listed = {re.findall(r"`(\w+)`", name)[0]: re.findall(r"`(\w+)`", options) for name, _, options in rows}
    assert listed == {name: list(inspect.signature(factory).parameters) for name, factory in SCORERS.items()}
