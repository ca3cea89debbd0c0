"""An answer in the form of GSM8K (Cobbe et al. 2021): whether the form, the arithmetic and the result are right.

Named on the command line as `--scorer=experiments.fixed_format_qa.scorer:steps_and_result`. Such an answer writes each
calculation as `48/2 = <<48/2=24>>24`, and on its last line `#### 72`.
"""

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction

from sft_jax.evaluation.scorers import Case, Outcome, make_scorer
from sft_jax.evaluation.scorers.numeric import read_number

MARKER = "####"
_CALCULATION = re.compile(r"<<([^<>=]*)=([^<>]*)>>")
_LAST_LINE = re.compile(rf"{MARKER} (\S+)")
_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_ROUNDED = Fraction(1, 100)  # results are written with few digits, relative to what they are
_LONGEST = 200  # characters of a calculation
_after_marker = make_scorer("numeric", {"marker": MARKER})
_anywhere = make_scorer("numeric", {"marker": MARKER, "marker_required": False})


def steps_and_result(answer: str, case: Case) -> Outcome:
    """The outcome of an answer.

    Returns:
        `exact_match`: the number behind the marker is that of the reference. `result_right`: the same, and where there
        is no marker the last number counts. `form_right`: the last line is the marker and a number, and no other line
        has a marker. `calculations`: how many of the calculations that it writes are right, and how many it writes;
        None where it writes none.
    """
    *before, last = answer.strip().split("\n")
    result = _LAST_LINE.fullmatch(last.strip())
    calculations = [is_right(*found.groups()) for found in _CALCULATION.finditer(answer)]
    return {
        "exact_match": _after_marker(answer, case)["exact_match"],
        "result_right": _anywhere(answer, case)["exact_match"],
        "form_right": result is not None and read_number(result[1]) is not None and MARKER not in "\n".join(before),
        "calculations": {"right": [sum(calculations), len(calculations)]} if calculations else None,
    }


def is_right(calculation: str, result: str) -> bool:
    """Whether a calculation of the four operations, with brackets, has this result, to one part in a hundred."""
    said, value = read_number(result), value_of(calculation)
    return said is not None and value is not None and abs(said - value) <= _ROUNDED * max(1, abs(value))


def value_of(calculation: str) -> Fraction | None:
    """What a calculation gives; None where it is none, or divides by zero."""
    plain = re.sub(r"[,$\s]", "", calculation)
    if not plain or len(plain) > _LONGEST:
        return None
    try:
        return _value(ast.parse(plain, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return None


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(str(node.value))
    raise ValueError(f"{ast.dump(node)[:80]} is no part of a calculation")
