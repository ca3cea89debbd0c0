"""docs/evaluation.md: its task and its config work as they stand there, and what it lists is all that there is."""

import importlib
import re
import sys
from pathlib import Path

import pytest

from configs import sft
from sft_jax.evaluation.measuring import measure
from sft_jax.evaluation.methods import PARTS
from sft_jax.evaluation.report.write import MARKDOWN, PAGE, PLOTS, RESULTS
from sft_jax.evaluation.tasks.checks import CHOOSE_BY, KINDS
from sft_jax.options import options_of
from sft_jax.runs.workdir import PREDICTIONS
from sft_jax.training.checks import check_config
from tests import tiny
from tests.evaluation.asking import RECORDS, entry, respondent

DOCS = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
CONFIG, TASK = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)


@pytest.mark.usefixtures("on_mesh")
def test_the_task_of_the_docs(loaded, tmp_path, monkeypatch):
    (tmp_path / "task_of_the_docs.py").write_text(TASK)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    measured = measure(entry(kind="task_of_the_docs:Steadfast"), respondent(loaded))
    sys.modules.pop("task_of_the_docs")
    assert [set(outcome) for outcome in measured.outcomes] == [{"likelier_when_doubted"}] * len(RECORDS)
    assert all(type(outcome["likelier_when_doubted"]) is bool for outcome in measured.outcomes)


def test_the_tasks_of_its_config(tmp_path):
    config = tiny.config(tmp_path).unlock()
    exec(CONFIG, {"config": config, "task": sft.task})  # as in a file of configs/
    check_config(config)
    assert list(options_of(config).evaluation.tasks) == ["spam", "sums", "titles"]  # by name, as the text says


def first_cells(heading: str) -> list[str]:
    section = DOCS.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [re.findall(r"`([^`]+)`", line.split("|")[1]) for line in section.split("\n") if line.startswith("| `")]


def test_all_kinds_methods_and_files_are_listed():
    assert first_cells("Tasks") == [[kind] for kind in (*KINDS, "package.module:Class")]
    assert first_cells("Methods") == [[part] for part in PARTS]
    assert all(f'"{way}"' in DOCS for way in CHOOSE_BY)
    files = [name for cell in first_cells("What comes of it") for name in cell]
    assert files == [
        *(PAGE, MARKDOWN, f"{PLOTS}/", RESULTS, f"{PREDICTIONS}/<task>/<method>.jsonl", "answers/<model>.jsonl"),
        *("events.out.tfevents…", "metrics.jsonl", "indexes/"),
    ]
