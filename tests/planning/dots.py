"""Counts the matrix products of a traced program: what formulas of a config are compared with."""

import math
from collections.abc import Iterator

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def dot_flops(program: ClosedJaxpr) -> float:
    """Two operations for each product of two numbers in a matrix product; what is in a scan as often as it runs."""
    return _flops(program.jaxpr)


def _flops(jaxpr: Jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            total += _dense(equation.invars[0].aval.shape, equation.outvars[0].aval.shape, params["dimension_numbers"])
        elif name == "ragged_dot_general":
            left, right = (value.aval.shape for value in equation.invars[:2])
            total += _ragged(left, right, params["ragged_dot_dimension_numbers"])
        elif name == "cond":
            total += max(_flops(branch.jaxpr) for branch in params["branches"])
        else:
            times = params["length"] if name == "scan" else 1
            total += times * sum(map(_flops, _inner(params)))
    return total


def _inner(params: dict) -> Iterator[Jaxpr]:
    for value in jax.tree.leaves(list(params.values()), is_leaf=lambda leaf: isinstance(leaf, ClosedJaxpr | Jaxpr)):
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value


def _dense(left: tuple[int, ...], result: tuple[int, ...], numbers: tuple) -> float:
    ((contracted, _), _) = numbers
    return 2.0 * math.prod(result) * math.prod(left[axis] for axis in contracted)


def _ragged(left: tuple[int, ...], right: tuple[int, ...], numbers) -> float:
    """Of rows in groups: each row meets one matrix, or the rows of each group one another."""
    ((contracted, _), _) = numbers.dot_dimension_numbers
    of_left = math.prod(left)
    (ragged,) = numbers.lhs_ragged_dimensions
    if ragged in contracted:  # [rows, I], [rows, O] to [groups, I, O]
        return 2.0 * of_left * math.prod(right) / left[ragged]
    skipped = {*numbers.rhs_group_dimensions, *numbers.dot_dimension_numbers[0][1]}
    return 2.0 * of_left * math.prod(size for axis, size in enumerate(right) if axis not in skipped)
