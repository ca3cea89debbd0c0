"""Lists of overrides, put together so that a sweep file reads like its question.

    def get_sweep():
        return product(
            values("adapter.rank", [4, 16, 64]),
            values("optimizer.learning_rate", [1e-4, 3e-4]),
            seeds(3),
        )

Overrides are a dict from the path of a field to its value, and each makes a run. What is drawn at random follows from
its seed alone: it is the same on every machine, and the first draws stay what they are when more are asked for.
"""

import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sft_jax.sweeps.distributions import Distribution

Overrides = dict[str, Any]
Runs = Any  # lists of overrides, of whoever states the sweep: what is something else is refused with a message


def fixed(field: str, value: Any) -> list[Overrides]:
    """One value of a field for all runs of a product.

    >>> product(fixed("optimizer.name", "lion"), seeds(2))
    [{'optimizer.name': 'lion', 'seed': 0}, {'optimizer.name': 'lion', 'seed': 1}]
    """
    return [{field: value}]


def values(field: str, choices: Iterable[Any]) -> list[Overrides]:
    """A run for each value of a field.

    >>> values("adapter.rank", [4, 16])
    [{'adapter.rank': 4}, {'adapter.rank': 16}]

    Raises:
        ValueError: `choices` is one text, or there are none.
    """
    if isinstance(choices, str):
        raise ValueError(f"values({field!r}, {choices!r}): expected a list of values, as [{choices!r}]")
    made = [{field: value} for value in choices]
    if not made:
        raise ValueError(f"values({field!r}, …): there are no values")
    return made


def seeds(count: int, start: int = 0) -> list[Overrides]:
    """Runs that differ in their seed alone.

    >>> seeds(3)
    [{'seed': 0}, {'seed': 1}, {'seed': 2}]
    >>> seeds(2, start=10)
    [{'seed': 10}, {'seed': 11}]

    Raises:
        ValueError: less than one.
    """
    if count < 1:
        raise ValueError(f"seeds({count}): expected at least 1")
    return [{"seed": start + number} for number in range(count)]


def product(*parts: Runs) -> list[Overrides]:
    """Each of the first with each of the second, and so on; the last one changes fastest.

    >>> product(values("adapter.rank", [4, 8]), seeds(2))  # doctest: +NORMALIZE_WHITESPACE
    [{'adapter.rank': 4, 'seed': 0}, {'adapter.rank': 4, 'seed': 1},
     {'adapter.rank': 8, 'seed': 0}, {'adapter.rank': 8, 'seed': 1}]

    Raises:
        ValueError: two of them set the same field; names it.
    """
    _check(parts, "product")
    return [_merged(combination, "product") for combination in itertools.product(*parts)]


def zip_(*parts: Runs) -> list[Overrides]:
    """The first of each together, the second of each, and so on.

    >>> zip_(values("adapter.rank", [4, 8]), values("adapter.alpha", [8.0, 16.0]))
    [{'adapter.rank': 4, 'adapter.alpha': 8.0}, {'adapter.rank': 8, 'adapter.alpha': 16.0}]

    Raises:
        ValueError: they are not of one length, or two of them set the same field.
    """
    _check(parts, "zip_")
    lengths = [len(part) for part in parts]
    if len(set(lengths)) > 1:
        raise ValueError(f"zip_ of lists of {', '.join(map(str, lengths))}: expected lists of one length")
    return [_merged(combination, "zip_") for combination in zip(*parts, strict=True)]


def chain(*parts: Runs) -> list[Overrides]:
    """The runs of the first, then those of the second, and so on.

    >>> chain(fixed("adapter.method", "dora"), product(fixed("adapter.method", "lora"), values("adapter.rank", [4, 8])))
    ... # doctest: +NORMALIZE_WHITESPACE
    [{'adapter.method': 'dora'},
     {'adapter.method': 'lora', 'adapter.rank': 4}, {'adapter.method': 'lora', 'adapter.rank': 8}]
    """
    _check(parts, "chain")
    return [dict(overrides) for part in parts for overrides in part]


def subsample(overrides: Sequence[Mapping[str, Any]], count: int, seed: int = 0) -> list[Overrides]:
    """Some of the runs, drawn without replacement, in the order they have.

    Those that are drawn are among those of a larger `count` with the same seed.

    >>> grid = product(values("adapter.rank", [4, 8, 16, 32]), seeds(5))
    >>> len(subsample(grid, 6)), all(run in subsample(grid, 7) for run in subsample(grid, 6))
    (6, True)

    Raises:
        ValueError: there are not so many.
    """
    _check([overrides], "subsample")
    if not 1 <= count <= len(overrides):
        raise ValueError(f"subsample of {count} from {len(overrides)} runs: expected between 1 and {len(overrides)}")
    rng = random.Random(f"subsample/{seed}")
    by_chance = sorted(range(len(overrides)), key=[rng.random() for _ in overrides].__getitem__)
    return [dict(overrides[number]) for number in sorted(by_chance[:count])]


def draws(count: int, space: Mapping[str, Distribution], seed: int = 0) -> list[Overrides]:
    """Random search: runs whose fields are drawn, each from its distribution.

    The draws of a field do not depend on the other fields.

    >>> from sft_jax.sweeps import choice, log_uniform
    >>> draws(3, {"optimizer.learning_rate": log_uniform(1e-5, 1e-3), "adapter.rank": choice(4, 8, 16)})
    ... # doctest: +NORMALIZE_WHITESPACE
    [{'optimizer.learning_rate': 1.895e-05, 'adapter.rank': 4},
     {'optimizer.learning_rate': 0.0003784, 'adapter.rank': 4},
     {'optimizer.learning_rate': 0.0006094, 'adapter.rank': 8}]

    Raises:
        ValueError: less than one, or a field without a distribution.
    """
    if count < 1:
        raise ValueError(f"draws({count}, …): expected at least 1")
    check_space(space, "draws")
    columns = {}
    for field, distribution in space.items():
        rng = random.Random(f"{seed}/{field}")
        columns[field] = [distribution.at(rng.random()) for _ in range(count)]
    return [{field: column[number] for field, column in columns.items()} for number in range(count)]


def check_space(space: Any, where: str) -> None:
    """Refuses what is no space to draw from.

    Raises:
        ValueError: it is empty, or a field has no distribution; names it.
    """
    if not isinstance(space, Mapping) or not space:
        raise ValueError(f"{where}: expected a dict from fields to distributions, got {space!r}")
    for field, distribution in space.items():
        if not isinstance(distribution, Distribution):
            raise ValueError(
                f"{where}: {field!r} has {distribution!r}, expected a distribution: log_uniform(1e-5, 1e-3), "
                "uniform(0, 1), integers(1, 8), choice(4, 8, 16)"
            )


def _check(parts: Sequence[Any], where: str) -> None:
    """Refuses anything but lists of dicts.

    Raises:
        ValueError: names the part that is something else.
    """
    for number, part in enumerate(parts, start=1):
        if not isinstance(part, (list, tuple)) or not all(isinstance(overrides, Mapping) for overrides in part):
            got = "a dict, one run: put it in brackets" if isinstance(part, Mapping) else repr(part)
            raise ValueError(f"{where}: part {number} is {got}; expected a list of dicts, as values(…) gives")


def _merged(combination: Iterable[Mapping[str, Any]], where: str) -> Overrides:
    made: Overrides = {}
    for overrides in combination:
        for field, value in overrides.items():
            other = next((path for path in made if _overlap(path, field)), None)
            if other is not None:
                both = f"{field!r} twice" if other == field else f"{other!r} and {field!r}, which is in it,"
                raise ValueError(f"{where} sets {both}; leave one of them out, or put runs after each other by chain")
            made[field] = value
    return made


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")
