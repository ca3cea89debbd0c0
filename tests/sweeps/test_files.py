"""Sweep files: what is wrong in one is said with its line."""

import pytest

from sft_jax.config_files import ConfigError
from sft_jax.sweeps.files import load
from sft_jax.sweeps.search import Optuna, SuccessiveHalving

MISTAKES = [  # (what the file has, what the message says after its name)
    ("x = 1", "has no function get_sweep, which gives a list of dicts, as product(values(…), seeds(3)) makes it."),
    ("get_sweep = [{'seed': 1}]", "its get_sweep is list, expected a function"),
    ("def get_sweep():\n    return", "its get_sweep returned None, expected a list of dicts"),
    ("def get_sweep():\n    return {'seed': 1}", "its get_sweep returned dict, expected a list of dicts"),
    ("def get_sweep():\n    yield {}", "its get_sweep returned generator, expected a list of dicts"),
    ("def get_sweep():\n    return [{}, 3]", "run 2 of its get_sweep is int, expected a dict from fields to values"),
    ("def get_sweep(:", "line 1: SyntaxError: "),
    ("\nimport nowhere", "line 2: ModuleNotFoundError: No module named 'nowhere'"),
    ("def get_sweep():\n    x = 1\n    return x / 0", "line 3: ZeroDivisionError: division by zero"),
    (
        "from sft_jax.sweeps import *\n\ndef get_sweep():\n    return product(seeds(2), seeds(3))",
        "line 4: ValueError: product sets 'seed' twice",
    ),
    ("def get_sweep(x):\n    return []", "its get_sweep needs an argument: --sweep="),
    ("def get_search():\n    return 3", "its get_search returned int, expected SuccessiveHalving(…) or Optuna(…)"),
    (
        "from sft_jax.sweeps import *\ndef get_search():\n    return SuccessiveHalving()",
        "line 3: ValueError: SuccessiveHalving: first=0, expected the steps of the first rung, as first=50",
    ),
]


@pytest.mark.parametrize(("text", "said"), MISTAKES, ids=[text for text, _ in MISTAKES])
def test_what_is_wrong_in_a_sweep_file(tmp_path, text, said):
    path = tmp_path / "sweep.py"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load(str(path))
    assert str(error.value).startswith(f"--sweep={path}: ")
    assert said in str(error.value)


def test_a_sweep_file_with_an_argument(tmp_path):
    """As `--config` takes it: behind the first colon. Both functions are given it."""
    path = tmp_path / "sweep.py"
    path.write_text(
        "from sft_jax.sweeps import *\n"
        "def get_sweep(arg=''):\n    return [{'model.source': arg}]\n"
        "def get_search(arg=''):\n    return SuccessiveHalving(first=len(arg) or 1)\n"
    )
    assert load(str(path)).overrides == [{"model.source": ""}]
    stated = load(f"{path}:random:x?y=1")
    assert stated.overrides == [{"model.source": "random:x?y=1"}]
    assert stated.search == SuccessiveHalving(first=len("random:x?y=1"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def get_sweep():\n    return [{}]", "its get_sweep takes no argument: --sweep={path}"),
        (
            "def get_sweep(arg):\n    return [{}]\ndef get_search():\n    pass",
            "its get_search takes no argument: --sweep={path}",
        ),
        ("def get_sweep(arg):\n    raise ValueError(arg)", "{path}, line 2: ValueError: little"),
    ],
)
def test_what_is_wrong_with_an_argument(tmp_path, text, said):
    path = tmp_path / "sweep.py"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load(f"{path}:little")
    assert str(error.value) == f"--sweep={path}:little: {said.format(path=path)}"
    if said.startswith("its get_sweep takes no argument"):
        assert load(str(error.value).rpartition("--sweep=")[2]).overrides == [{}]


def test_a_file_that_is_not_there(tmp_path):
    (tmp_path / "other.py").write_text("")
    with pytest.raises(ConfigError, match=r"there is no such file\. In .* there are: other\.py"):
        load(str(tmp_path / "sweep.py"))


def test_searches_are_found(tmp_path):
    path = tmp_path / "sweep.py"
    start = "from sft_jax.sweeps import *\ndef get_search():\n    return "
    path.write_text(start + "Optuna(space={'seed': integers(0, 9)})")
    stated = load(str(path))
    assert isinstance(stated.search, Optuna)
    assert stated.overrides == [{}]
    path.write_text(start + "SuccessiveHalving(first=5)\ndef get_sweep():\n    return seeds(2)")
    stated = load(str(path))
    assert stated.search == SuccessiveHalving(first=5)
    assert stated.overrides == [{"seed": 0}, {"seed": 1}]
