"""Findings and the verdict in words: for the terminal (rich), for TensorBoard (Markdown) and as plain values.

The report (__init__.py) shows them after its numbers.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sft_jax.audit.checks import Finding, Verdict

STYLES = {"error": "bold white on red", "warning": "bold black on yellow", "info": "bold black on cyan"}
DECISIONS = {
    "ready": "Nothing that was measured here speaks against training on it.",
    "clean_first": "Clean it first.",
}
_VERDICT_STYLES = {"ready": "green", "clean_first": "yellow"}
_EXAMPLES = 3  # of a finding, in the terminal
_EXCERPT = 140  # characters of an example, in the terminal


def finding_values(finding: Finding) -> dict[str, Any]:
    """A finding as plain values, ready for JSON."""
    values = dataclasses.asdict(finding)
    return values | {"examples": [{"row": place.row_id, "text": place.text} for place in finding.examples]}


def verdict_values(verdict: Verdict) -> dict[str, Any]:
    """A verdict as plain values, ready for JSON."""
    return {
        "decision": verdict.decision,
        "in_words": DECISIONS[verdict.decision],
        "reasons": [{"text": reason.text, "favours": reason.favours} for reason in verdict.reasons],
    }


def findings_rich(findings: Sequence[Finding], in_short: bool = False) -> RenderableType:
    """For the terminal; in short, without what is only for information."""
    shown = [finding for finding in findings if not in_short or finding.severity != "info"]
    parts: list[RenderableType] = [Text("Findings", style="italic")]
    for finding in shown:
        line = Table.grid(padding=(0, 1))
        line.add_row(Text(f" {finding.severity.upper():<7} ", STYLES[finding.severity]), Text(finding.title))
        parts.append(line)
        if finding.severity == "info":
            continue
        for place in finding.examples[: 1 if in_short else _EXAMPLES]:
            text = place.text if len(place.text) <= _EXCERPT else f"{place.text[:_EXCERPT]}…"
            parts.append(Padding(Text.assemble((place.row_id, "cyan"), "  ", (text, "dim")), (0, 0, 0, 10)))
        if finding.advice:
            parts.append(Padding(Text(f"→ {finding.advice}"), (0, 0, 0, 10)))
    hidden = len(findings) - len(shown)
    if not shown:
        parts.append(Text("  nothing that is wrong"))
    if hidden:
        parts.append(Text(f"  and {hidden} for information: python -m sft_jax.preview", style="dim"))
    return Group(*parts)


def verdict_rich(verdict: Verdict) -> RenderableType:
    """For the terminal."""
    reasons = [f"• {escape(reason.text)}" for reason in verdict.reasons]
    body = "\n".join([f"[bold]{DECISIONS[verdict.decision]}[/bold]", *reasons])
    return Panel(body, title="Verdict", title_align="left", border_style=_VERDICT_STYLES[verdict.decision])


def findings_markdown(findings: Sequence[Finding]) -> list[str]:
    """Lines for TensorBoard."""
    if not findings:
        return []
    lines = ["", "| | finding | rows | first | what to do |", "|---|---|---|---|---|"]
    for finding in findings:
        first = ", ".join(place.row_id for place in finding.examples[:_EXAMPLES])
        cells = (finding.severity, finding.title, f"{finding.count:,}", first, finding.advice)
        lines.append(f"| {' | '.join(map(cell, cells))} |")
    return lines


def verdict_markdown(verdict: Verdict) -> list[str]:
    """Lines for TensorBoard."""
    return ["", f"**Verdict: {DECISIONS[verdict.decision]}**", "", *(f"- {cell(r.text)}" for r in verdict.reasons)]


def cell(text: str) -> str:
    """A text that stays in its cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")
