"""The numbers of a finding as HTML: in a line, as bars, or as a table, depending on their form."""

import html
from collections.abc import Mapping
from typing import Any

_IN_A_LINE = 8  # values of an object that stand in a line; more are bars
_BARS = 12


def numbers_html(numbers: Mapping[str, Any]) -> str:
    """Plain values (`Finding.numbers`), nested once or twice; values of any other form are in report.json only.

    {"copies": 4, "groups": 2} is a line; {"rows": {"a": 9, "b": 3, ...}} bars, or a line where they are few;
    {"packing": {"128": {"efficiency": 0.9}}} a table.
    """
    scalars = {name: value for name, value in numbers.items() if _is_plain(value)}
    parts = [_line("", scalars)] if scalars else []
    for name, value in numbers.items():
        if isinstance(value, Mapping) and value:
            parts.append(_object(name.replace("_", " "), value))
        elif isinstance(value, list | tuple) and value and all(isinstance(item, str) for item in value):
            parts.append(f'<p class="numbers">{_text(name)}: {html.escape(", ".join(value))}</p>')
    return "".join(parts)


def plain(value: Any) -> str:
    """A value as people write it: 1,234 and 0.1235."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _object(name: str, values: Mapping[str, Any]) -> str:
    if all(isinstance(value, Mapping) for value in values.values()):
        return _table(name, values)
    if not all(_is_plain(value) for value in values.values()):
        return ""
    numeric = all(isinstance(value, int | float) for value in values.values())
    return _bars(name, values) if numeric and len(values) > _IN_A_LINE else _line(f"{name}: ", values)


def _line(before: str, values: Mapping[str, Any]) -> str:
    text = " · ".join(f"{str(name).replace('_', ' ')} {plain(value)}" for name, value in values.items())
    return f'<p class="numbers">{html.escape(before + text)}</p>'


def _bars(name: str, values: Mapping[str, Any]) -> str:
    largest = sorted(values.items(), key=lambda pair: -pair[1])
    most = largest[0][1] or 1
    lines = "".join(
        f'<tr><th>{_text(label)}</th><td class="number">{plain(value)}</td>'
        f'<td class="track"><i style="width:{100 * value / most:.1f}%"></i></td></tr>'
        for label, value in largest[:_BARS]
    )
    more = len(largest) - _BARS
    rest = f'<p class="numbers">and {more:,} more, down to {plain(largest[-1][1])}</p>' if more > 0 else ""
    return f'<p class="numbers">{_text(name)}</p><table class="bars">{lines}</table>{rest}'


def _table(name: str, values: Mapping[str, Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for value in values.values() for column in value))
    head = "".join(f'<th class="number">{_text(column.replace("_", " "))}</th>' for column in columns)
    lines = "".join(
        f"<tr><th>{_text(label)}</th>"
        + "".join(f'<td class="number">{html.escape(plain(value.get(column, "")))}</td>' for column in columns)
        + "</tr>"
        for label, value in values.items()
    )
    return f'<table class="bars"><tr><th>{_text(name)}</th>{head}</tr>{lines}</table>'


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _text(value: Any) -> str:
    return html.escape(str(value))
