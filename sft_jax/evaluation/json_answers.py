"""Reads JSON objects out of model answers, generously, and brings their fields into a comparable form.

Used by the scorers of JSON (`scorers/json_fields.py`, `scorers/slots.py`). Generous on purpose: the base model must not
lose a comparison on quotes or on a sentence around its JSON. What is accepted is listed in `parse_object`, what counts
as equal in `comparable_fields`.
"""

import ast
import itertools
import json
import re
import warnings
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

MISSING = frozenset({"", "null", "none", "n/a"})
BRACES_TRIED = 100  # bounds the time spent on an answer of nothing but braces

_NAMES = {"null": None, "true": True, "false": False}
_DECODER = json.JSONDecoder(strict=False)


def parse_object(answer: str) -> dict[Any, Any] | None:
    """The first JSON object in an answer, or None.

    Accepted: text or a code fence before and after it; line breaks within strings; an array (its first object);
    doubled braces; and objects which are Python literals rather than JSON: single quotes, None/True/False, trailing
    commas. An object whose only field is itself an object (`{"vehicle": {...}}`) stands for the inner one. An object
    cut off before its closing brace is not one, but a whole one inside it is.
    """
    for match in itertools.islice(re.finditer(r"\{", answer), BRACES_TRIED):
        found = _object_at(answer, match.start())
        if found is not None:
            return _unwrapped(found)
    return None


def parse_list_or_object(answer: str) -> list[Any] | dict[Any, Any] | None:
    """The first JSON list or object in an answer, or None; read as generously as by `parse_object`, not unwrapped."""
    for match in itertools.islice(re.finditer(r"[\[{]", answer), BRACES_TRIED):
        found = _object_at(answer, match.start(), list if match[0] == "[" else dict)
        if found is not None:
            return found
    return None


def comparable_fields(fields: Mapping[Any, Any]) -> dict[str, str]:
    """Field name -> value, both as text that is equal where two answers mean the same.

    Names: case and any spaces, underscores and hyphens are ignored. Values: case and the amount of white space are
    ignored, a number equals the string that spells it (2012, 2012.0, "2012"). Missing fields (null, "", "null",
    "none", "N/A" in any case) are left out, so an absent field equals a null one.
    """
    texts = ((comparable_name(name), comparable_value(value)) for name, value in fields.items())
    return {name: text for name, text in texts if text not in MISSING}


def comparable_name(name: Any) -> str:
    """The name of a field without case, spaces, underscores and hyphens."""
    return re.sub(r"[\s_\-]+", "", str(name).casefold())


def comparable_value(value: Any) -> str:
    """A value as text, as said in `comparable_fields`; empty for null."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).casefold()
    if isinstance(value, int | float):
        number = Decimal(str(value))
        return format(number.to_integral_value() if number == number.to_integral_value() else number, "f")
    if isinstance(value, Mapping):
        return json.dumps(comparable_fields(value), sort_keys=True)
    if isinstance(value, list | tuple | set):
        return json.dumps([comparable_value(item) for item in value])
    return " ".join(str(value).casefold().split())


def _object_at(text: str, start: int, kind: type = dict) -> Any | None:
    try:
        found, _ = _DECODER.raw_decode(text, start)
        return found
    except (ValueError, RecursionError):
        end = _closing_brace(text, start)
        return None if end is None else _python_object(text[start : end + 1], kind)


def _python_object(text: str, kind: type) -> Any | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a "\d" in the answer
            tree = ast.parse(text, mode="eval")
        found = ast.literal_eval(_NamesAsConstants().visit(tree))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return found if isinstance(found, kind) else None


class _NamesAsConstants(ast.NodeTransformer):
    """Lets JSON's null, true and false stand in a Python literal."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.copy_location(ast.Constant(_NAMES[node.id]), node) if node.id in _NAMES else node


def _closing_brace(text: str, start: int) -> int | None:
    """Index of the brace or bracket that closes the one at `start`, those within quotes apart."""
    opening, closing = text[start], {"{": "}", "[": "]"}[text[start]]
    depth, quote, escaped = 0, "", False
    for index in range(start, len(text)):
        char = text[index]
        if quote:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == quote:
                quote = ""
        elif char in "\"'":
            quote = char
        elif char in (opening, closing):
            depth += 1 if char == opening else -1
            if depth == 0:
                return index
    return None


def _unwrapped(found: dict[Any, Any]) -> dict[Any, Any]:
    inner = next(iter(found.values())) if len(found) == 1 else None
    return inner if isinstance(inner, dict) else found
