"""Names of runs: what differs, readable, and a hash of the whole config: `learning_rate=1e-4,seed=0-3f9a2c1b`.

They are names of directories, and what TensorBoard and reports call the runs.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax.runs.workdir import MAY_CHANGE, is_under

_LONGEST = 120  # characters of a name, of which most file systems allow 255
_LONGEST_VALUE = 32
_HASH = 8  # hexadecimal characters
_DATE = "data.date"  # where it is not set, that of the sweep's first start


def identity(fields: Mapping[str, Any], overrides: Mapping[str, Any]) -> str:
    """A hash of what makes a run what it is.

    What may be another when a run goes on (`MAY_CHANGE`, `runs/workdir.py`) does not count, except where the sweep
    sets it: a sweep over micro-batches is about their speed.

    Args:
        fields: of the resolved config, by path.
        overrides: what the sweep sets of them.
    """
    counts = {
        name: value
        for name, value in fields.items()
        if is_under(name, overrides) or not is_under(name, (*MAY_CHANGE, _DATE))
    }
    return hashlib.sha256(json.dumps(counts, sort_keys=True).encode()).hexdigest()


def name_of(values: Mapping[str, Any], keys: Mapping[str, str], hashed: str) -> str:
    """The name of a run.

    Args:
        values: of the fields that differ, by path, in the order in which they are named.
        keys: what each field is called, of `short_keys`.
        hashed: of `identity`.
    """
    text, ending = ",".join(f"{keys[field]}={value_text(value)}" for field, value in values.items()), hashed[:_HASH]
    text = text[: _LONGEST - _HASH - 1].rstrip(",=.-") or "run"
    return f"{text}-{ending}"


def value_text(value: Any) -> str:
    """A value in a name: letters, digits and `.`, `_`, `+`, `-` alone; numbers with at most four digits.

    >>> [value_text(value) for value in (1e-4, 0.1, 20000.0, True, "cosine", ("a/b", "c"), "", 3.14159e-5)]
    ['1e-4', '0.1', '2e4', 'true', 'cosine', 'a_b+c', 'empty', '3.142e-5']
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        mantissa, exponent = f"{value:.3e}".split("e") if math.isfinite(value) else (str(value), "0")
        power = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
        return min(f"{value:.4g}", power, key=len)
    if isinstance(value, (tuple, list)):
        text = "+".join(map(value_text, value))
    elif isinstance(value, Mapping):
        text = "+".join(map(value_text, value))  # its keys
    else:
        text = re.sub(r"[^A-Za-z0-9._+-]+", "_", str(value)).strip("._")
    return text[:_LONGEST_VALUE] or "empty"


def short_keys(fields: Sequence[str]) -> dict[str, str]:
    """The last part of each path, with those before it where two fields would be called the same.

    >>> short_keys(["optimizer.name", "objective.name", "seed"])
    {'optimizer.name': 'optimizer.name', 'objective.name': 'objective.name', 'seed': 'seed'}
    """
    keys = {}
    for field in fields:
        parts = field.split(".")
        for count in range(1, len(parts) + 1):
            keys[field] = ".".join(parts[-count:])
            others = (f".{other}" for other in fields if other != field)
            if not any(other.endswith(f".{keys[field]}") for other in others):
                break
    return keys
