"""The report as one HTML file that needs nothing else: no network, no other file.

Style and paging are those of the data preview, with page.css on top. Whatever comes from data or models is escaped:
texts in markup by `html.escape`, answers as JSON in which no `<` is left; page.js makes text nodes of them alone.
"""

import base64
import html
import string
from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax.audit.preview.page import PAGER, embedded_json, part_of_page
from sft_jax.evaluation.report.drawing import Plot
from sft_jax.evaluation.report.rows import Rows, page_rows
from sft_jax.evaluation.report.tables import Section, TextTable, report_sections, visible
from sft_jax.evaluation.report.verdicts import UNDECIDED, WORSE

_HERE = "sft_jax.evaluation.report"


def report_page(
    results: Mapping[str, Any], answers: Mapping[str, Mapping[str, Rows]], plots: Sequence[Plot] = ()
) -> str:
    """The page; ends in a newline.

    Args:
        results: of the package's form.
        answers: by task and method; may be empty.
        plots: shown in their sections.

    Raises:
        ValueError: the methods of a task do not have the same rows in the same order.
    """
    subtitle = f"Methods: {', '.join(results['methods'])}. {results['created']}, seed {results['seed']}."
    rows = page_rows(results, answers)
    return sections_page("Evaluation", ", ".join(results["tasks"]), subtitle, report_sections(results), plots, rows)


def sections_page(
    kind: str,
    title: str,
    subtitle: str,
    sections: Sequence[Section],
    plots: Sequence[Plot],
    rows: Mapping[str, Any] | None = None,
) -> str:
    """A page of sections.

    Args:
        kind: of report, in the bar.
        title: its heading.
        subtitle: below it.
        sections: in order.
        plots: shown in their sections.
        rows: of `page_rows`, listed behind the sections; None: nothing is listed.
    """
    links = [f'<a href="#section-{number}">{_text(section.title)}</a>' for number, section in enumerate(sections)]
    listed = {"answers": "", "js": ""}
    if rows is not None:
        links.append('<a href="#answers">Answers</a>')
        part = string.Template(part_of_page("answers.html", _HERE))
        listed["answers"] = part.substitute(pager=PAGER, data=embedded_json(rows))
        listed["js"] = f"<script>\n{part_of_page('paging.js')}{part_of_page('page.js', _HERE)}</script>\n"
    parts = {
        "kind": _text(kind),
        "title": _text(title),
        "subtitle": _text(subtitle),
        "css": part_of_page("page.css") + part_of_page("page.css", _HERE),
        "links": "".join(links),
        "sections": "".join(_section(f"section-{n}", section, plots) for n, section in enumerate(sections)),
        **listed,
    }
    return string.Template(part_of_page("page.html", _HERE)).substitute(parts)


def _section(identifier: str, section: Section, plots: Sequence[Plot]) -> str:
    inside = [f"<h2>{_text(section.title)}</h2>"]
    if section.facts:
        inside.append(f'<p class="quiet">{_text("; ".join(section.facts))}.</p>')
    inside += [f'<p class="sentence {_style(sentence)}">{_text(sentence)}</p>' for sentence in section.verdicts]
    inside += [_table(table) for table in section.tables if not table.is_detail]
    images = "".join(map(_image, (plot for plot in plots if plot.section == section.name)))
    inside += [f'<div class="plots">{images}</div>'] if images else []
    inside += [
        f'<details class="finding"><summary>{_text(table.title)}</summary>'
        f'<div class="inside scrolled" tabindex="0">{_grid(table)}</div></details>'
        for table in section.tables
        if table.is_detail
    ]
    if section.notes:
        inside.append(f'<ul class="notes">{"".join(f"<li>{_text(note)}</li>" for note in section.notes)}</ul>')
    return f'<section id="{identifier}">{"".join(inside)}</section>'


def _style(sentence: str) -> str:
    """By the worst that it says."""
    if WORSE in sentence or "FAILED" in sentence:
        return "error"
    return "undecided" if UNDECIDED in sentence or "compare" in sentence else "good"


def _table(table: TextTable) -> str:
    title = f"<h3>{_text(table.title)}</h3>" if table.title else ""
    return f'<div class="card scrolled" tabindex="0">{title}{_grid(table)}</div>'


def _grid(table: TextTable) -> str:
    styles = [' class="number"' if table.is_numeric(column) else "" for column in range(len(table.columns))]
    head = "".join(
        f'<th scope="col"{style}>{_text(name)}</th>' for name, style in zip(table.columns, styles, strict=True)
    )
    rows = "".join("<tr>" + "".join(map(_td, row, styles)) + "</tr>" for row in table.rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _td(cell: str, style: str) -> str:
    inside = f'<b class="error">{WORSE}</b>' if cell == WORSE else _text(cell)
    return f"<td{style}>{inside}</td>"


def _image(plot: Plot) -> str:
    data = base64.b64encode(plot.png).decode("ascii")
    return f'<img class="plot" src="data:image/png;base64,{data}" alt="{_text(plot.caption)}">'


def _text(text: str) -> str:
    return html.escape(visible(text))
