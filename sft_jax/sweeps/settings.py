"""Settings of a sweep: what its runs differ in, but for the seed. Runs of one setting are repetitions of one another.

What is read here are plain values of `sweep.json`: TensorBoard and reports build no config of them.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from sft_jax.runs.workdir import DAMAGED, WorkdirError
from sft_jax.sweeps.names import short_keys, value_text

FILE = "sweep.json"
SEED = "seed"


@dataclasses.dataclass(frozen=True)
class Stated:
    """What `sweep.json` says.

    Attributes:
        sweep: the sweep file, as it was given.
        base: fields of the base config by path.
        fields: paths of those that differ between runs, the seed included where it does.
        overrides: of each run by its name, by path.
    """

    sweep: str
    base: Mapping[str, Any]
    fields: tuple[str, ...]
    overrides: Mapping[str, Mapping[str, Any]]

    @property
    def factors(self) -> tuple[str, ...]:
        """The fields that make up a setting."""
        return tuple(field for field in self.fields if field != SEED)

    def value(self, run: str, field: str) -> Any:
        """What a run has in a field; None where its config has no such field."""
        return self.overrides[run].get(field, self.base.get(field))

    def setting(self, run: str) -> dict[str, Any]:
        """The values of the factors in a run."""
        return {field: self.value(run, field) for field in self.factors}


def read_stated(root: epath.PathLike) -> Stated:
    """What a directory's `sweep.json` says.

    Raises:
        WorkdirError: there is none, or it is damaged.
    """
    path = epath.Path(root) / FILE
    if not path.exists():
        raise WorkdirError(f"{root} holds no sweep: there is no {FILE} in it")
    try:
        found = json.loads(path.read_text())
        overrides = {run["name"]: dict(run["overrides"]) for run in found["runs"]}
        return Stated(str(found["sweep"]), dict(found["base"]), tuple(map(str, found["fields"])), overrides)
    except (ValueError, TypeError, KeyError) as error:
        raise WorkdirError(f"{path} is not the file of a sweep ({error!r}); {DAMAGED}") from error


def setting_name(values: Mapping[str, Any]) -> str:
    """What a setting is called: `learning_rate=1e-4,rank=8`. Values are as exact as they are in the config.

    Args:
        values: of the factors, by path; without any, there is one setting, `all runs`.
    """
    keys = short_keys(list(values))
    return ", ".join(f"{keys[field]}={exact_text(value)}" for field, value in values.items()) or "all runs"


def exact_text(value: Any) -> str:
    """A value in few characters, and another text for every other value.

    >>> [exact_text(value) for value in (1e-4, 20000.0, 0.30000000000000004, True, "cosine", ["a", "b"], None)]
    ['1e-4', '2e4', '0.30000000000000004', 'true', 'cosine', '["a", "b"]', 'none']
    """
    if isinstance(value, float):
        short = value_text(value)
        return short if float(short) == value else repr(value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
