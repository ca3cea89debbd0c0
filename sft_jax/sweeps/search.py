"""What a sweep file can ask for in place of running everything: `get_search()` gives one of these.

Random search needs none: its runs are `draws` of `get_sweep()`. Decisions are functions of what the runs measured, so
that a search which was killed goes on as it would have gone on.
"""

import abc
import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax.sweeps.combinators import check_space
from sft_jax.sweeps.distributions import Distribution

_MODES = ("min", "max")


@dataclasses.dataclass(frozen=True)
class Search(abc.ABC):
    """How runs are chosen.

    Attributes:
        metric: of an evaluation, as `metrics.jsonl` names it; a setting counts by its mean over seeds.
        mode: "min" where less is better, or "max".
    """

    metric: str = "held_out/nll"
    mode: str = "min"

    def __post_init__(self):
        if self.mode not in _MODES:
            raise ValueError(f"{type(self).__name__}: mode={self.mode!r}, expected one of {', '.join(_MODES)}")

    @abc.abstractmethod
    def to_json(self) -> dict[str, Any]:
        """What `sweep.json` says of it; another one is another sweep."""

    def badness(self, value: float | None) -> float:
        """What is sorted by: the worst of all for what was not measured."""
        if value is None or not math.isfinite(value):
            return math.inf
        return value if self.mode == "min" else -value


@dataclasses.dataclass(frozen=True)
class SuccessiveHalving(Search):
    """All runs begin; at each rung the best 1 / eta of them go on, and the others stay where they are.

    A run that goes on continues its own checkpoint, with the schedule of a run of full length: nothing of its config
    changes from rung to rung, and the one that comes to its end is what it would have been without a search. So rungs
    compare runs in the middle of their schedules. (Jamieson and Talwalkar 2016, arXiv:1502.07943.)

    Attributes:
        first: optimizer steps of the first rung; each next one has eta times as many, the last one all of the run.
        eta: of which one goes on.
    """

    first: int = 0
    eta: int = 3

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.first, int) or self.first < 1:
            raise ValueError(
                f"SuccessiveHalving: first={self.first!r}, expected the steps of the first rung, as first=50"
            )
        if not isinstance(self.eta, int) or self.eta < 2:
            raise ValueError(f"SuccessiveHalving: eta={self.eta!r}, expected a whole number of at least 2")

    def to_json(self) -> dict[str, Any]:
        return {"kind": "successive_halving", **dataclasses.asdict(self)}

    def rungs(self, total_steps: int) -> list[int]:
        """The steps at which runs are compared, and the last one, at which they end.

        >>> SuccessiveHalving(first=50, eta=3).rungs(600)
        [50, 150, 450, 600]
        """
        made, step = [], self.first
        while step < total_steps:
            made.append(step)
            step *= self.eta
        return [*made, total_steps]

    def promoted(self, measured: Mapping[str, float | None], settings: Sequence[Sequence[str]]) -> list[str]:
        """The runs that go on.

        Args:
            measured: of each run of the rung, the metric at its step; None where it failed.
            settings: the runs of each setting, which differ in seed alone.

        Returns:
            Of the settings that were measured the best 1 / eta, and at least one; at equal means those that are stated
            first. No setting goes on of which a run failed.
        """
        means = [_mean([measured.get(name) for name in names]) for names in settings]
        order = sorted(range(len(settings)), key=lambda number: (self.badness(means[number]), number))
        kept = [number for number in order if means[number] is not None][: max(1, len(settings) // self.eta)]
        return [name for number in sorted(kept) for name in settings[number]]


def _mean(values: Sequence[float | None]) -> float | None:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.fmean(finite) if values and len(finite) == len(values) else None


@dataclasses.dataclass(frozen=True)
class Optuna(Search):
    """Trials that Optuna proposes (requirements-optuna.txt), asked for and told of in groups.

    Each trial is run with each of `get_sweep()`, where there is one: `seeds(3)` judges it by a mean over three seeds.

    Attributes:
        space: from fields to distributions.
        trials: how many.
        at_once: that are proposed together, and run together.
        seed: of its sampler, TPE.
    """

    space: Mapping[str, Distribution] = dataclasses.field(default_factory=dict)
    trials: int = 20
    at_once: int = 4
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        check_space(self.space, "Optuna")
        for name in ("trials", "at_once"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"Optuna: {name}={getattr(self, name)!r}, expected a whole number of at least 1")

    def to_json(self) -> dict[str, Any]:
        """More trials are no other search: their number is not in it."""
        space = {
            field: {"kind": type(distribution).__name__, **dataclasses.asdict(distribution)}
            for field, distribution in self.space.items()
        }
        plain = {name: getattr(self, name) for name in ("metric", "mode", "at_once", "seed")}
        return {"kind": "optuna", **plain, "space": space}
