"""The preview as one HTML file that needs nothing else: no network, no other file.

Everything that comes from the data is escaped: texts in markup by `html.escape`, examples as JSON in which no `<` is
left.
"""

import html
import json
import re
import string
import urllib.parse
from collections.abc import Collection, Sequence
from importlib import resources
from typing import Any

from sft_jax.audit.checks import Finding, Verdict
from sft_jax.audit.preview.examples import KINDS
from sft_jax.audit.preview.histogram import histogram_svg
from sft_jax.audit.preview.numbers import numbers_html
from sft_jax.audit.preview.selection import ROW_NAME, PageExamples
from sft_jax.audit.report import DataReport, report_lines
from sft_jax.audit.report.findings import DECISIONS
from sft_jax.data.tokenized import TokenizedExamples

_ESCAPED = re.compile("[<>&\u2028\u2029\ud800-\udfff]")  # the last are surrogates without a pair: no file can hold them
PAGER = """<div class="controls"><button class="previous">← Previous</button><span>Page
<input class="page-number" type="number" min="1" aria-label="Page"> <span class="pages"></span></span>
<button class="next">Next →</button><span class="range quiet"></span></div>"""


def page_html(title: str, subtitle: str, report: DataReport, examples: TokenizedExamples, shown: PageExamples) -> str:
    """The page.

    Args:
        title: what data it is.
        subtitle: of which model, and what else belongs to the name.
        report: numbers, findings and verdict.
        examples: all that is trained on, for the histograms.
        shown: the examples to search and page through.
    """
    names = {example["id"] for example in shown.examples}
    changes = _changes(report.numbers)
    parts = {
        "title": html.escape(title),
        "subtitle": html.escape(subtitle),
        "css": part_of_page("page.css"),
        "js": part_of_page("paging.js") + part_of_page("page.js"),
        "tiles": _tiles(report.numbers),
        "findings": _findings(report.findings, names),
        "findings_link": _findings_link(report.findings),
        "lengths": _lengths(report.numbers, examples),
        "changes": changes,
        "changes_link": '<a href="#changes">Left out and changed</a>' if changes else "",
        "examples_note": html.escape(shown.note),
        "kinds": "".join(f"<option>{kind}</option>" for kind in KINDS),
        "pager": PAGER,
        "verdict": _verdict(report.verdict),
        "data": embedded_json({"examples": shown.examples}),
    }
    return string.Template(part_of_page("page.html")).substitute(parts)


def embedded_json(value: Any) -> str:
    """JSON for a script element: nothing in it can end the element or begin a comment, and all of it is UTF-8."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _ESCAPED.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def part_of_page(name: str, package: str = "sft_jax.audit.preview") -> str:
    """A file of a package that becomes part of a page. The style and `paging.js` here serve other pages too."""
    return (resources.files(package) / name).read_text(encoding="utf-8")


def _tiles(numbers: dict) -> str:
    lengths, packing = numbers["length_quantiles"], numbers["packing"]
    tiles = [
        (f"{numbers['examples']:,}", "examples trained on"),
        (f"{numbers['tokens']:,}", "tokens"),
        (f"{numbers['supervised_share']:.1%}", f"of tokens trained ({numbers['supervised_tokens']:,})"),
        (f"{lengths['50%']:,}", f"tokens in the median example (longest {lengths['100%']:,})"),
        (f"{packing['efficiency']:.1%}", f"of sequences of {packing['sequence_length']:,} tokens used"),
        (f"{numbers['dropped_rows']:,}", "rows left out"),
    ]
    if numbers["cleaning"]["changed"]:
        tiles.append((f"{sum(entry['records'] for entry in numbers['cleaning']['changed']):,}", "changes by cleaning"))
    return "".join(f'<div class="tile"><b>{value}</b><span>{html.escape(what)}</span></div>' for value, what in tiles)


def _findings_link(findings: Sequence[Finding]) -> str:
    counts = {name: sum(finding.severity == name for finding in findings) for name in ("error", "warning")}
    chips = "".join(f' <span class="chip {name}">{count}</span>' for name, count in counts.items() if count)
    return f'<a href="#findings">Findings{chips}</a>'


def _findings(findings: Sequence[Finding], names: Collection[str]) -> str:
    inside = "".join(_finding(finding, names) for finding in findings)
    inside = inside or '<p class="card good">The checks found nothing.</p>'
    return f'<section id="findings"><h2>Findings</h2>{inside}</section>'


def _finding(finding: Finding, names: Collection[str]) -> str:
    examples = "".join(
        f"<li>{_link(place.row_id, names, ROW_NAME.findall(place.text))}<br>"
        f"<code>{_linked(place.text, names)}</code></li>"
        for place in finding.examples
    )
    advice = f"<p>{html.escape(finding.advice)}</p>" if finding.advice else ""
    opened = " open" if finding.severity == "error" else ""
    return (
        f'<details class="finding"{opened}><summary><span class="chip {finding.severity}">{finding.severity}</span>'
        f'<span>{html.escape(finding.title)}</span></summary><div class="inside">{advice}<ul>{examples}</ul>'
        f"{numbers_html(finding.numbers)}</div></details>"
    )


def _link(name: str, names: Collection[str], beside: Sequence[str] = ()) -> str:
    """The name of a row; a link if the row is on the page, which shows it and those beside it."""
    text, target = html.escape(name), dict.fromkeys(row for row in (name, *beside) if row in names)
    return f'<a href="#row={_in_url(chr(10).join(target))}">{text}</a>' if name in names else text


def _linked(text: str, names: Collection[str]) -> str:
    """A text in which names of rows are links."""
    parts, at = [], 0
    for found in ROW_NAME.finditer(text):
        parts += [html.escape(text[at : found.start()]), _link(found.group(), names)]
        at = found.end()
    return "".join([*parts, html.escape(text[at:])])


def _in_url(name: str) -> str:
    return urllib.parse.quote(name, safe="")


def _lengths(numbers: dict, examples: TokenizedExamples) -> str:
    charts = [
        ("Tokens an example", examples.lengths, "tokens"),
        ("Trained tokens an example", examples.supervised, "trained tokens"),
    ]
    cards = [f'<div class="card"><h3>{title}</h3>{histogram_svg(sizes, what)}</div>' for title, sizes, what in charts]
    lines = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in report_lines(numbers)
    )
    cards.append(f'<div class="card wide"><h3>In numbers</h3><table>{lines}</table></div>')
    return "".join(cards)


def _changes(numbers: dict) -> str:
    """What was left out and what cleaning changed."""
    dropped = [(entry["rows"], reason, entry["first"]) for reason, entry in numbers["dropped"].items()]
    changed = [(e["records"], f"{e['step']}: {e['reason']}", e["first"]) for e in numbers["cleaning"]["changed"]]
    cards = [_change_table(title, lines) for title, lines in (("Left out", dropped), ("Changed", changed)) if lines]
    if not cards:
        return ""
    inside = "".join(cards)
    return f'<section id="changes"><h2>Left out and changed</h2><div class="columns">{inside}</div></section>'


def _change_table(title: str, lines: Sequence[tuple[int, str, Sequence[str]]]) -> str:
    rows = "".join(
        f'<tr><td class="number">{count:,}</td><td>{html.escape(reason)}<br>'
        f'<span class="quiet">{html.escape("; ".join(first))}{", …" if count > len(first) else ""}</span></td></tr>'
        for count, reason, first in lines
    )
    return f'<div class="card"><h3>{title}</h3><table>{rows}</table></div>'


def _verdict(verdict: Verdict | None) -> str:
    if verdict is None:
        return '<p class="card">No verdict was asked for.</p>'
    style = "good" if verdict.decision == "ready" else "warning"
    reasons = "".join(f"<li>{html.escape(reason.text)}</li>" for reason in verdict.reasons)
    return f'<div class="verdict {style}"><b>{DECISIONS[verdict.decision]}</b><ul>{reasons}</ul></div>'
