"""The report of a sweep for a terminal: the best settings, and what is shown. The rest is in the files."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from sft_jax.evaluation.report.tables import visible
from sft_jax.evaluation.report.verdicts import WORSE
from sft_jax.sweeps.names import short_keys
from sft_jax.sweeps.report.sections import setting_cells, verdicts_of

_MOST_SETTINGS = 20
_MOST_FAILED = 5


def terminal_report(found: Mapping[str, Any]) -> Group:
    """The settings, the best first; failed runs; verdicts. As long as a screen, however many runs there are."""
    failed = [
        Text(visible(f"{run['name']}: {run['state']}: {run['error'] or 'unknown'}"), style="red", overflow="ellipsis")
        for run in found["failed"][:_MOST_FAILED]
    ]
    if len(found["failed"]) > _MOST_FAILED:
        failed.append(Text(f"and {len(found['failed']) - _MOST_FAILED} more", style="red"))
    said = [Text(visible(sentence), style=_style(sentence)) for sentence in verdicts_of(found)]
    notes = [Text(visible(note), style="dim") for note in found["notes"]]
    return Group(_table(found), *said, *failed, *notes)


def _style(sentence: str) -> str:
    return "bold red" if WORSE in sentence or "FAILED" in sentence else "bold"


def _table(found: Mapping[str, Any]) -> Table:
    sign = -1 if found["better"] == "higher" else 1
    place = lambda one: (one["score"] is None, sign * one["score"]["value"] if one["score"] and found["better"] else 0)
    ordered = sorted(found["settings"], key=place)
    left = len(ordered) - _MOST_SETTINGS
    keys, factors = short_keys(found["factors"]), found["factors"]
    states = ", ".join(f"{count} {state}" for state, count in found["states"].items())
    title = f"{found['metric']}, {found['at']}; {states}"
    table = Table(title=Text(visible(title)), title_justify="left")
    if left > 0:
        table.caption = f"and {left} more settings"
    names = [keys[factor] for factor in factors] or ["setting"]
    for name in names:
        table.add_column(Text(visible(name)), style="bold", overflow="fold")
    # No bound of an interval is cut, in a narrow terminal either.
    widths = {"mean [95 %]": 9, **dict.fromkeys(found["also"], 9), "seeds": 5, "difference": 10, "p, Holm": 7}
    for name, width in widths.items():
        table.add_column(Text(visible(name)), justify="right", min_width=width)
    table.add_column("the setting is")
    for one in ordered[:_MOST_SETTINGS]:
        cells = list(setting_cells(found, one, ()))
        del cells[-3]  # the p-value without correction
        table.add_row(*(Text(visible(cell), style="bold red" if cell == WORSE else "") for cell in cells))
    return table
