"""Looking into programs: every equation of a jaxpr, and the shapes of a compiled program's matrix products."""

import re
from collections.abc import Callable, Iterator

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def equations(function: Callable, *args) -> list[JaxprEqn]:
    """All equations of `function`'s jaxpr, those of inner programs (scan bodies, custom rules) included."""
    return list(_walk(jax.make_jaxpr(function)(*args).jaxpr))


def _walk(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                yield from _walk(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)


def _is_jaxpr(value: object) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)


def dot_dtypes(function: Callable, *args) -> list[tuple[str, str, str]]:
    """(left, right, result) dtypes of every matrix product."""
    return [
        (*(str(v.aval.dtype) for v in e.invars), str(e.outvars[0].aval.dtype))
        for e in equations(function, *args)
        if e.primitive.name == "dot_general"
    ]


def result_sizes(function: Callable, *args) -> list[int]:
    """Number of elements of every array that an equation makes."""
    return [v.aval.size for e in equations(function, *args) for v in e.outvars if hasattr(v.aval, "size")]


def compiled_dot_shapes(function: Callable, *args) -> list[tuple[int, ...]]:
    """Result shapes of the matrix products that are left in the compiled program (dead ones are gone)."""
    text = jax.jit(function).lower(*args).compile().as_text()
    found = re.findall(r"= \w+\[([\d,]*)\]\S* dot\(", text)
    assert found, "no matrix product in the compiled program"
    return [tuple(int(n) for n in shape.split(",") if n) for shape in found]
