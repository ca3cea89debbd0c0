"""What docs/sweeps.md shows is what there is: its example is the file, snippets run, names are those of runs."""

import re
from pathlib import Path

import pytest

from configs import sft
from sft_jax import sweeps
from sft_jax.sweeps.files import load
from sft_jax.sweeps.runs import runs_of
from sft_jax.sweeps.search import Search

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "sweeps.md").read_text()
EXAMPLE = ROOT / "experiments" / "learning_rate_and_rank" / "sweep.py"
SNIPPETS = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)


def test_the_example_is_the_file():
    assert SNIPPETS[0] == EXAMPLE.read_text()[EXAMPLE.read_text().index("from ") :]


def test_the_name_of_a_run_is_one_of_the_example():
    (shown,) = re.findall(r"runs/rank/(rank=\S+)-[0-9a-f]{8}/", DOCS)
    assert shown in {run.name[:-9] for run in runs_of(sft.get_config("lora"), load(str(EXAMPLE)).overrides)}


@pytest.mark.parametrize("snippet", [text for text in SNIPPETS if "get_search" in text], ids=["halving", "optuna"])
def test_searches_can_be_made(snippet):
    space = {name: getattr(sweeps, name) for name in sweeps.__all__}
    exec(snippet, space)
    assert isinstance(space["get_search"](), Search)


def test_the_table_has_all_combinators():
    """And what it calls can be called."""
    table = DOCS[DOCS.index("| `values(") : DOCS.index("What is drawn follows")]
    a = sweeps.seeds(30)
    b = sweeps.values("adapter.rank", list(range(30)))
    space = {name: getattr(sweeps, name) for name in sweeps.__all__} | {"a": a, "b": b}
    calls = [call.replace(", …", "") for call in re.findall(r"`([a-z_]+\(.*?\))`", table)]
    called = {call.partition("(")[0] for call in calls}
    for call in calls:
        if "low, high" not in call:
            assert eval(call, space)
    assert called | {"log_uniform"} == set(sweeps.__all__) - {"Optuna", "SuccessiveHalving"}
