"""What sweeps on short titles have in common: where the rows lie, how many seeds there are, and their small form.

The argument of such a sweep file, as in `--sweep=experiments/data_size/sweep.py:smoke,data=data/titles`, has none, one
or both of: `smoke`, the same sweep in small, to see that all of it runs; `data=DIRECTORY`, of
`python -m experiments.short_titles`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.short_titles.rows import HELD_OUT, TRAIN

DATA = "runs/short_titles"
Overrides = dict[str, Any]

_SEEDS = 3
_SIZES = "num_hidden_layers=2&hidden_size=32&intermediate_size=64&num_attention_heads=2&num_key_value_heads=1"
# A model of two layers with random weights, and two steps, with a measurement before and behind them.
_SMALL: Overrides = {
    "model.source": f"random:smollm2-135m-instruct?{_SIZES}",
    "duration": "2 steps",
    "evaluation.every": "0 steps",
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the argument of a sweep file says.

    Attributes:
        data: directory of the rows.
        is_smoke: whether the sweep is to be small.
    """

    data: str = DATA
    is_smoke: bool = False

    @property
    def seeds(self) -> int:
        """How many a setting has."""
        return 1 if self.is_smoke else _SEEDS

    @property
    def small(self) -> list[Overrides]:
        """For a product: what makes the small form small; in the other form nothing."""
        return [dict(_SMALL) if self.is_smoke else {}]

    @property
    def asked(self) -> int:
        """Rows of a task that are asked; 0: all."""
        return 2 if self.is_smoke else 0

    def in_full(self, runs: list[Overrides]) -> list[Overrides]:
        """For a product: what the small form has otherwise."""
        return [{}] if self.is_smoke else runs

    def file(self, name: str) -> str:
        """The path of a file of rows."""
        return str(Path(self.data) / name)

    def rows(self, train: str = TRAIN, held_out: str = HELD_OUT) -> list[Overrides]:
        """For a product: the files that are trained on and measured."""
        return [{"data.train": self.file(train), "data.held_out": self.file(held_out)}]

    def few(self, runs: Sequence[Overrides]) -> list[Overrides]:
        """The runs; in the small form the first and the last of them."""
        return [runs[0], runs[-1]] if self.is_smoke else list(runs)


def setting_of(arg: str) -> Setting:
    """What an argument says.

    Raises:
        ValueError: it says something else.
    """
    found = Setting()
    for part in filter(None, arg.split(",")):
        name, _, value = part.partition("=")
        if part == "smoke":
            found = dataclasses.replace(found, is_smoke=True)
        elif name == "data" and value:
            found = dataclasses.replace(found, data=value)
        else:
            raise ValueError(
                f"the argument {arg!r}: expected 'smoke', 'data=DIRECTORY', or both with a comma, got {part!r}"
            )
    return found
