"""The advice in the source that a person can follow at the program: texts that name a flag, a step or a command."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from sft_jax.data.cleaning import STEPS

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "sft_jax").rglob("*.py"))
_NAMED = re.compile(rf"--[a-z]|\{{_?FLAGS?\}}|\{{reading\.split_flag\}}|python -m|\b({'|'.join(STEPS)})\b")
_VERBS = (
    "give|leave|choose|take|read by|force|say|set|lower|raise|decide|use|export|accept|name|keeps|repairs|thin|drop"
)
_VERBS += "|call|takes them|must be|expected|train|look|makes|did you mean|remove|go on|start|then|shortened|to add|put"
_VERBS += "|is read"
_ADVISED = re.compile(rf"\b({_VERBS})\b", re.IGNORECASE)


def advice_in(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of each text in a file that advises something; what f-strings insert stands in braces."""
    tree = ast.parse(path.read_text())
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(node.value)
        if isinstance(node, ast.JoinedStr):
            skipped.update(inner for inner in ast.walk(node) if inner is not node)
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("flags.DEFINE"):
            skipped.update(ast.walk(node))
    for node in ast.walk(tree):
        text = "" if node in skipped else _text(node)
        if _NAMED.search(text) and _ADVISED.search(text):
            yield node.lineno, text


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if not isinstance(node, ast.JoinedStr):
        return ""
    return "".join(v.value if isinstance(v, ast.Constant) else f"{{{ast.unparse(v.value)}}}" for v in node.values)
