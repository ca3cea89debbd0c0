"""Combinators: their examples hold, what is drawn is what it was, and what cannot be meant is refused."""

import doctest

import pytest

from sft_jax import sweeps
from sft_jax.sweeps import (
    chain,
    choice,
    combinators,
    distributions,
    draws,
    fixed,
    integers,
    log_uniform,
    names,
    problems,
    product,
    search,
    seeds,
    subsample,
    uniform,
    values,
    zip_,
)

MODULES = (combinators, distributions, names, problems, search)
RANKS, RATES = values("adapter.rank", [4, 8]), values("optimizer.learning_rate", [1e-4, 1e-3])
SPACE = {"optimizer.learning_rate": log_uniform(1e-5, 1e-2), "adapter.dropout": uniform(0.0, 0.3)}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples_of_docstrings(module):
    result = doctest.testmod(module)
    assert result.failed == 0
    assert result.attempted > 0


def test_a_sweep_reads_like_its_question():
    runs = chain(
        product(fixed("adapter.method", "lora"), zip_(RANKS, values("adapter.alpha", [8.0, 16.0])), seeds(2)),
        fixed("adapter.method", "none"),
    )
    assert runs == [
        {"adapter.method": "lora", "adapter.rank": 4, "adapter.alpha": 8.0, "seed": 0},
        {"adapter.method": "lora", "adapter.rank": 4, "adapter.alpha": 8.0, "seed": 1},
        {"adapter.method": "lora", "adapter.rank": 8, "adapter.alpha": 16.0, "seed": 0},
        {"adapter.method": "lora", "adapter.rank": 8, "adapter.alpha": 16.0, "seed": 1},
        {"adapter.method": "none"},
    ]


def test_what_is_drawn_is_what_it_was():
    """On every machine: a sweep that goes on elsewhere has the same runs."""
    assert draws(3, {**SPACE, "adapter.rank": integers(1, 64), "optimizer.name": choice("adamw", "lion")}, seed=7) == [
        {"optimizer.learning_rate": 0.005532, "adapter.dropout": 0.2992, "adapter.rank": 44, "optimizer.name": "lion"},
        {"optimizer.learning_rate": 0.0007341, "adapter.dropout": 0.2284, "adapter.rank": 30, "optimizer.name": "lion"},
        {
            "optimizer.learning_rate": 1.317e-05,
            "adapter.dropout": 0.2742,
            "adapter.rank": 12,
            "optimizer.name": "adamw",
        },
    ]
    assert subsample([{"seed": seed} for seed in range(10)], 4, seed=3) == [
        {"seed": 5},
        {"seed": 6},
        {"seed": 7},
        {"seed": 9},
    ]


def test_draws_are_continued_and_do_not_depend_on_other_fields():
    assert draws(20, SPACE)[:5] == draws(5, SPACE)
    alone = draws(5, {"adapter.dropout": SPACE["adapter.dropout"]})
    assert [run["adapter.dropout"] for run in draws(5, SPACE)] == [run["adapter.dropout"] for run in alone]
    assert draws(5, SPACE, seed=1) != draws(5, SPACE)


def test_draws_fill_their_range():
    drawn = draws(2000, {**SPACE, "adapter.rank": integers(3, 6), "optimizer.name": choice("a", "b")})
    rates = [run["optimizer.learning_rate"] for run in drawn]
    assert 1e-5 <= min(rates) < 1.05e-5
    assert 0.95e-2 < max(rates) <= 1e-2
    decades = [sum(10.0**low <= rate < 10.0 ** (low + 1) for rate in rates) / 2000 for low in (-5, -4, -3)]
    assert decades == pytest.approx([1 / 3] * 3, abs=0.04)  # standard deviation 0.0105
    for field, options in (("adapter.rank", (3, 4, 5, 6)), ("optimizer.name", ("a", "b"))):
        found = [run[field] for run in drawn]
        assert set(found) == set(options)
        for option in options:
            assert found.count(option) / 2000 == pytest.approx(1 / len(options), abs=0.05)


def test_a_subsample_keeps_the_order_and_is_part_of_a_larger_one():
    grid = product(RANKS, RATES, seeds(10))
    for count in (1, 7, 39):
        some, more = subsample(grid, count, seed=5), subsample(grid, count + 1, seed=5)
        assert len(some) == count
        assert [run for run in more if run in some] == some
        assert sorted(some, key=grid.index) == some
    assert subsample(grid, 40) == grid


def test_what_is_given_is_not_changed():
    made = product(RANKS, seeds(1))
    made[0]["seed"] = 5
    chain(RANKS)[0]["seed"] = 5
    assert RANKS == [{"adapter.rank": 4}, {"adapter.rank": 8}]


REFUSED = [  # (what is asked, what the message says)
    (lambda: product(RANKS, RANKS), "product sets 'adapter.rank' twice; leave one of them out"),
    (lambda: zip_(seeds(2), seeds(2)), "zip_ sets 'seed' twice"),
    (
        lambda: product(fixed("data.mixture", {}), values("data.mixture.math.weight", ["1"])),
        "product sets 'data.mixture' and 'data.mixture.math.weight', which is in it,",
    ),
    (lambda: zip_(RANKS, seeds(3)), "zip_ of lists of 2, 3: expected lists of one length"),
    (lambda: product({"seed": 0}), "product: part 1 is a dict, one run: put it in brackets; expected a list of dicts"),
    (lambda: chain(RANKS, [1]), "chain: part 2 is [1]; expected a list of dicts"),
    (lambda: values("data.train", "a.jsonl"), "expected a list of values, as ['a.jsonl']"),
    (lambda: values("seed", []), "there are no values"),
    (lambda: seeds(0), "seeds(0): expected at least 1"),
    (lambda: subsample(RANKS, 3), "subsample of 3 from 2 runs: expected between 1 and 2"),
    (lambda: draws(0, SPACE), "draws(0, …): expected at least 1"),
    (lambda: draws(2, {"seed": 3}), "draws: 'seed' has 3, expected a distribution: log_uniform(1e-5, 1e-3)"),
    (lambda: draws(2, {}), "draws: expected a dict from fields to distributions, got {}"),
    (lambda: log_uniform(0, 1), "log_uniform(0, 1): expected numbers above 0"),
    (lambda: uniform(1, 0), "uniform(1, 0): expected two numbers, the lower one first"),
    (lambda: integers(1, 2.5), "integers(1, 2.5): expected whole numbers"),
    (lambda: choice(), "choice(): there is nothing to choose from"),
]


@pytest.mark.parametrize(("asked", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_cannot_be_meant_is_refused(asked, said):
    with pytest.raises(ValueError) as error:  # noqa: PT011  the text is compared
        asked()
    assert said in str(error.value)


def test_the_package_has_them_all():
    public = {name for module in (combinators, distributions) for name in vars(module) if name in sweeps.__all__}
    assert public | {"Optuna", "SuccessiveHalving"} == set(sweeps.__all__)
